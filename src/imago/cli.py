"""What the scripts share: Hydra's command line with exit codes and messages that one can rely on.

Exit codes: 0 done; 1 a run broke (its summary says how); 2 the command cannot be carried out as given, with one
message; 130 and 143 after Ctrl-C and SIGTERM. In a multirun every job has its own fate, and the code is the worst of
them.
"""

import difflib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

# Idle OpenMP threads shall sleep: spinning costs up to six times where cores are shared. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from imago.config import CONF, RELOCATED
from imago.errors import Interrupted, UserError

if TYPE_CHECKING:  # the scripts load torch once Hydra has composed
    import torch


class JobFailed(Exception):  # noqa: N818 - the failure was already reported
    """One job of a multirun failed and was reported; the others go on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def run(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Run a task under Hydra with a configuration of ``conf/``; ends the process with the exit code.

    Args:
        task: gets the composed configuration; raises UserError for what the user can mend.
        config_name: the primary configuration, such as ``train``.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall hand errors on instead of printing them and exiting with 1
    # Deprecations inside libraries are not the user's concern.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)

    def job(config: DictConfig) -> None:
        code = report(lambda: task(config))
        if code and HydraConfig.get().mode == RunMode.MULTIRUN and code < 128:
            raise JobFailed(code)
        if code:
            sys.exit(code)

    def main() -> None:
        try:
            hydra_main()
        except HydraException:
            raise
        except OSError as error:  # a job's own errors are reported already; this is Hydra, making its folder
            raise UserError(f"logs: {error.strerror}: {error.filename}; name a folder with logs=PATH") from None

    hydra_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)
    sys.exit(report(main))


def report(action: Callable[[], None]) -> int:
    """Carry out an action; say what went wrong, in one message where it is the user's to mend; return the exit code."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except JobFailed as error:
        return error.exit_code
    except Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf: which override is wrong and what would be right."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException):
        wanted = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
        if wanted:
            group, name = wanted.groups()
            known = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}? " if close else ""
            return f"{group}={name}: no such choice; {remedy}choose one of {', '.join(known)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    group = re.search(r"Could not override '([^']+)'.*No match in the defaults list", text)
    named = group or unknown
    relocated = RELOCATED.get(re.split("[@.]", named[1])[0]) if named else None
    if named and relocated == named[1]:
        return f"{named[1]}: this model has none to replace; to change the model of a checkpoint write +{named[1]}=NAME"
    if named and relocated:
        return f"{named[1]}: belongs to the model; choose with {relocated}=NAME"
    if group:
        groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
        if group[1] in groups:
            return f"{group[1]}: a group of train.py, which this script does not have; leave it out, or see --help"
        close = difflib.get_close_matches(group[1], groups, 1)
        remedy = f"did you mean {close[0]}?" if close else f"groups are {', '.join(groups)}"
        return f"{group[1]}: no such group of settings; {remedy}"
    if unknown:
        cause = error.__cause__ or error.__context__
        detail = re.search(r"Key '([^']+)' is not in struct", f"{text} {cause}")
        remedy = "see --cfg job for all settings"
        if detail and cause is not None:
            known = _siblings(cause)
            close = difflib.get_close_matches(detail[1], known, 1)
            remedy = f"did you mean {close[0]}? " if close else ""
            remedy += f"known here are {', '.join(known) or 'none'}"
            if not known and unknown[1].startswith("model."):
                remedy = f"to change the model of a checkpoint write +{unknown[1]}=VALUE"
        return f"{unknown[1]}: no such setting; {remedy}"
    return text


def device(name: str | None) -> "torch.device":
    """The device that the setting ``device`` names; without a name the GPU where there is one, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name}: {reason}; choose another one, or device=null") from None
    return found


def _siblings(error: BaseException) -> list[str]:
    parent = getattr(error, "parent_node", None)
    return sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
