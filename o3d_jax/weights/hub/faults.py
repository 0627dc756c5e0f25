"""What the hub and the way to it may answer instead of a file, as one line with its remedy."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import NoReturn

from o3d_jax.errors import InputError
from o3d_jax.weights.hub.repositories import Repository

FROM_DISK = "or get the files elsewhere and give their folder as --from"


def check_installed() -> None:
    """Raises an InputError unless huggingface_hub is there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(
            "to fetch weights, install huggingface_hub: pip install 'o3d-jax[hub]'; "
            "files that are on disk need none: give their folder as --from"
        )


@contextlib.contextmanager
def hub_faults(repository: Repository, revision: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub into an InputError that names value and remedy."""
    from huggingface_hub import constants, errors

    name, where = repository.name, constants.ENDPOINT
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{name} has no revision {revision} at {where}; give another, as `main`, by the "
            "option that ends in -revision"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"{_address(error)} is not there any more; run the command again, to see what "
            f"{name} holds now, {FROM_DISK}"
        ) from error
    except errors.GatedRepoError as error:
        _refuse_gated(repository, _status(error), error)
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no {name} at {where}, or it is not for everybody; look at "
            f"{repository.page}, {FROM_DISK}"
        ) from error
    except errors.HfHubHTTPError as error:
        if _status(error) in (401, 403):
            _refuse_token(repository, _status(error), error)
        raise InputError(
            f"{where} answered {_status(error)} for {name}; try again later, {FROM_DISK}"
        ) from error
    # All that httpx raises, of whichever version huggingface_hub has.
    except (errors.OfflineModeIsEnabled, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise InputError(
            f"cannot reach {where} for {name}: {error}; check the network, or HF_ENDPOINT and "
            f"HF_HUB_OFFLINE if they are set, {FROM_DISK}"
        ) from error


def _refuse_gated(repository: Repository, status: int, error: Exception) -> NoReturn:
    """Raises the InputError of files that are for those who have accepted a license."""
    login = "make a token at https://huggingface.co/settings/tokens and give it by `hf auth login`"
    if status == 401:
        remedy = f"accept its license at {repository.page}, then {login} or as HF_TOKEN"
    else:
        remedy = (
            f"accept its license at {repository.page} with the account that your token is of, or "
            f"{login}"
        )
    raise InputError(f"{repository.name} is gated (status {status}); {remedy}") from error


def _refuse_token(repository: Repository, status: int, error: Exception) -> NoReturn:
    """Raises the InputError of a token that is wrong, or of too few rights."""
    raise InputError(
        f"your token may not read {repository.name} (status {status}); make one that may at "
        "https://huggingface.co/settings/tokens, and give it by `hf auth login` or as HF_TOKEN"
    ) from error


def _status(error: Exception) -> int:
    """Returns the status that one of the hub's errors is of."""
    return getattr(error, "response").status_code  # noqa: B009


def _address(error: Exception) -> str:
    """Returns the address that was asked for, without what signs it."""
    return str(getattr(error, "response").url).partition("?")[0]  # noqa: B009
