"""What every package may use and what uses none of them; import from here, unless you name a module's own business."""

from transpooler.common.durations import duration_s, format_duration
from transpooler.common.errors import UserError
from transpooler.common.exit_codes import DONE, INTERRUPTED, PREEMPTED, STALLED, USER_ERROR
from transpooler.common.fields import all_problems, at_least, between, one_of, positive
from transpooler.common.files import (
    INCOMPLETE_SUFFIX,
    DiskFullError,
    atomic_write,
    disk_problem,
    fsync_folder,
    is_disk_full,
    local_path,
    lock_alone,
    name_in_disk_problems,
    read_json,
    sha256_of,
    write_json,
)
from transpooler.common.log import Progress, progress, say, set_quiet
from transpooler.common.net import free_port, is_free
from transpooler.common.processes import (
    die_when,
    die_with_parent,
    peak_resident_mib,
    resident_mib,
    start_of,
    without_collection,
)
from transpooler.common.signals import STOP_SIGNALS, delay_signals, exit_on_stop_signals, handle_signals, listens_to
from transpooler.common.tables import align, columns_of, print_table
from transpooler.common.text import (
    PAGE_BREAK,
    cut_at_white_space,
    is_blank,
    join_hyphenated,
    list_some,
    one_line,
    percent,
    show_controls,
    split_list,
)
from transpooler.common.versions import TESTED, check_version
