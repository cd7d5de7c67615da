"""A build over several hosts whose Dask talks by certificates alone: who has none, or those of others, gets no work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hosts import Host, private_hosts, why_not
from tests.jobs.cluster.test_hosts import Site, building, ended, running
from tests.teacher_cache import test_faults
from tests.teacher_cache.test_faults import SHARDS, assert_whole, on

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
whole, folder = test_faults.whole, test_faults.folder


class Papers(NamedTuple):
    """The files of somebody's certificate, as Dask asks for them."""

    ca_file: Path
    cert: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """Of Dask's programs."""
        return ["--tls-ca-file", str(self.ca_file), "--tls-cert", str(self.cert), "--tls-key", str(self.key)]

    @property
    def section(self) -> str:
        """Of `[cluster]`."""
        return f'tls_ca_file = "{self.ca_file}"\ntls_cert = "{self.cert}"\ntls_key = "{self.key}"'


def authority(folder: Path) -> Callable[[str], Papers]:
    """Return what makes certificates that one authority has signed, which is made now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    now = datetime.now(UTC)

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    def certificate(name: str, own: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey) -> bytes:
        is_authority = x509.BasicConstraints(ca=own is signer, path_length=None)
        builder = x509.CertificateBuilder(
            issuer_name=named(folder.name),
            subject_name=named(name),
            public_key=own.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(minutes=5),
            not_valid_after=now + timedelta(days=1),
        )
        signed = builder.add_extension(is_authority, critical=True).sign(signer, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    root = ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(certificate(folder.name, root, root))

    def papers(name: str) -> Papers:
        key = ec.generate_private_key(ec.SECP256R1())
        found = Papers(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
        found.cert.write_bytes(certificate(name, key, root))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        found.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
        return found

    return papers


class Sealed(NamedTuple):
    """A site of hosts that talk by certificates, what makes those, and what the scheduler has told."""

    site: Site
    papers: Callable[[str], Papers]
    log: Path

    @property
    def address(self) -> str:
        return f"{self.site.head.address}:8786"


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Sealed]:
    """Yield four hosts, of which one has a scheduler and one a worker with certificates."""
    papers = authority(tmp_path / "ours")
    with private_hosts(4) as (desk, head, *workers), contextlib.ExitStack() as stack:
        found = Sealed(Site(desk, head, (workers[0], workers[1])), papers, tmp_path / "scheduler.log")
        where = ("--protocol", "tls", "--host", head.address, "--dashboard-address", "127.0.0.1:0")
        scheduler = head.program("dask", "scheduler", *where, *papers("head").options)
        stack.enter_context(running(scheduler, found.log))
        worker = worker_of(workers[0], f"tls://{found.address}", tmp_path, *papers("worker").options)
        stack.enter_context(running(worker, tmp_path / "worker.log"))
        yield found


def worker_of(host: Host, scheduler: str, folder: Path, *options: str) -> list[str]:
    """Return a command that starts a worker on a host."""
    own = ("--host", host.address, "--nthreads", "1", "--no-dashboard", "--local-directory", folder)
    return host.program("dask", "worker", scheduler, *own, "--death-timeout", "10", *options)


def test_who_has_no_certificate_or_anothers_gets_no_work(
    sealed: Sealed, folder: Path, whole: Path, tmp_path: Path
) -> None:
    others, stranger = authority(tmp_path / "others"), sealed.site.workers[1]
    strangers = {
        "none": worker_of(stranger, f"tls://{sealed.address}", tmp_path),
        "plain": worker_of(stranger, f"tcp://{sealed.address}", tmp_path),
        "others": worker_of(stranger, f"tls://{sealed.address}", tmp_path, *others("stranger").options),
    }
    cluster = f'kind = "address"\naddress = "tls://{sealed.address}"\n{sealed.papers("desk").section}'
    logs = {name: tmp_path / f"{name}.log" for name in strangers}
    with contextlib.ExitStack() as stack:
        for name, command in strangers.items():
            stack.enter_context(running(command, logs[name]))
        until_s = time.monotonic() + 120  # each has tried before there is work for anybody
        while not all(told(log) for log in logs.values()) and time.monotonic() < until_s:
            time.sleep(0.2)
        with building(sealed.site, on(folder, cluster)) as process:
            code, said, noted = ended(process)
    assert (code, said["built"]) == (0, 2 * SHARDS), noted
    assert_whole(folder, whole)
    registered = [line for line in sealed.log.read_text().splitlines() if "Register worker" in line]
    assert registered != []
    assert {sealed.site.workers[0].address in line for line in registered} == {True}, registered
    assert {name: told(log) for name, log in logs.items()} == dict.fromkeys(logs, True)


def told(log: Path) -> bool:
    """Return whether a worker has told that it cannot join."""
    text = log.read_text()
    return any(word in text for word in ("certificate", "Timed out", "SSL", "CommClosedError", "Closing"))


def test_a_command_without_a_certificate_is_refused_before_anything_is_computed(
    sealed: Sealed, folder: Path, tmp_path: Path
) -> None:
    others = authority(tmp_path / "others")
    addresses = {
        "none": f'address = "tls://{sealed.address}"',
        "plain": f'address = "tcp://{sealed.address}"',
        "others": f'address = "tls://{sealed.address}"\n{others("desk").section}',
    }
    found = {}
    for name, address in addresses.items():
        with building(sealed.site, on(folder, f'kind = "address"\n{address}')) as process:
            code, said, noted = ended(process)
        found[name] = (code, said.get("what"), said.get("found"), noted)
    assert {name: each[0] in (2, 75) for name, each in found.items()} == dict.fromkeys(found, True), found
    assert not list(folder.glob("cache/*/ingest/*")), found
