"""Ask an object store until it answers; its own client gives up too early, and on some requests at once."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import StoreUnavailable
from storage.format.stores.refusals import OF_ROLES, REFUSALS, refused, told

PATIENCE_S = 120.0  # with a store that does not answer
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 15.0
CLIENT_RETRIES = 2  # of the store's own client, within one asking of ours
FINAL = re.compile(r"status code: 4(?!08|09|29)\d\d|Received redirect")  # a refusal; the same request meets it again
NO_BUCKET = REFUSALS[0].words  # what is said of an object too whose bucket is not there
PATIENCE_WITH_ROLES_S = 15.0  # most machines have none, and nothing answers there; one that has may be busy

T = TypeVar("T")
_answered: set[str] = set()  # buckets that this process was let into


def asked(verb: str, name: str, ask: Callable[[], T]) -> T:
    """Return what a store answers, asked again with longer and longer waits until it does.

    Args:
        verb: what is asked for, for messages.
        name: address of the object or folder.
        ask: makes the request, which may be made any number of times.

    Raises:
        FileNotFoundError: there is no such object.
        StorageFailure: the store refuses the request, and would again.
        StoreRefused: it would as long as address and environment are what they are.
        StoreUnavailable: it has not answered for two minutes.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

    began_s, wait_s = time.monotonic(), FIRST_WAIT_S
    bucket = "/".join(name.split("/", 3)[:3])
    while True:
        try:
            answer = ask()
            _answered.add(bucket)
            return answer
        except FileNotFoundError as error:
            if NO_BUCKET.search(str(error)):
                raise refused(verb, name, str(error)) from error
            raise
        except BaseError as error:
            said, waited_s = str(error), time.monotonic() - began_s + wait_s
            # the first is also what a 409 is called, whatever was asked: somebody else is at it just now
            final = not isinstance(error, AlreadyExistsError | GenericError) or FINAL.search(said)
            no_role = bucket not in _answered and waited_s > PATIENCE_WITH_ROLES_S and OF_ROLES.search(said)
            if final or no_role:
                raise refused(verb, name, said) from error
            if waited_s > PATIENCE_S:
                raise StoreUnavailable(
                    f"cannot {verb} {name}: the store has not answered for {PATIENCE_S:g} s",
                    found=told(said),
                    do="run the same command again when the store answers; what is committed stays. "
                    "If it never has, check the address, the network and the credentials in the environment",
                ) from error
        time.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - so that many workers do not ask as one
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
