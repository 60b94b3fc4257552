"""The rows and the conditions that statements name again and again."""

MAX_BURIED_PER_RESERVATION = 100

# The live rows, by what their next attempt would be (see schema.py).
DUE_ROWS = "tasks INDEXED BY tasks_due WHERE finished_at IS NULL AND queue IS NULL AND max_attempts > attempt + 1"
LAST_OR_SPENT_ROWS = (
    "tasks INDEXED BY tasks_last WHERE finished_at IS NULL AND queue IS NULL AND max_attempts <= attempt + 1"
)
LAST_ROWS = f"{LAST_OR_SPENT_ROWS} AND max_attempts > attempt"
SPENT_ROWS = "tasks INDEXED BY tasks_spent WHERE finished_at IS NULL AND max_attempts <= attempt"
OLD_ROWS = "tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL"
OLDEST_FIRST = "ORDER BY available_at, id"

# An abandoned task is one whose lease is over: its worker is gone, or will find its claim gone.
ABANDONED = "(status = 'in_progress' AND available_at <= {now})"
CAN_RETRY = f"(status IN ('failed', 'cancelled') OR {ABANDONED})"
CAN_CANCEL = f"(finished_at IS NULL AND (status = 'pending' OR {ABANDONED}))"

IS_HELD = "id = NEW.id AND claim = NEW.claim AND status = 'in_progress'"
NOTE_NOT_HELD = "INSERT INTO note SELECT 'not held', NEW.id, NEW.claim WHERE changes() = 0;"
NOTE_UNCHANGED = "INSERT INTO note SELECT 'unchanged', NEW.task_id, NEW.call WHERE changes() = 0;"
START = "status = 'in_progress', attempt = attempt + 1, claim = NEW.claim, started_at = NEW.now"
