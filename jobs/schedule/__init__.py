"""What starts a night's work by the clock; each file says what every exit status means there (docs/schedules.md).

night.sh            the night itself, which all others start: build, train, report
crontab             cron
stillroom.service   systemd, with stillroom.timer
night.sbatch        SLURM: three jobs, each after the one before
cronjob.yaml        Kubernetes
stillroom_dag.py    Airflow
Makefile            make
"""
