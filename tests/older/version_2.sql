-- What a process of schema version 2 (sitq 1.0) installs in its connection, and carries out its changes with.

CREATE TEMP TABLE note (kind, key, claim);

CREATE TEMP VIEW change AS SELECT NULL AS op, NULL AS now, NULL AS key, NULL AS claim, NULL AS at, NULL AS a, NULL AS b, NULL AS c, NULL AS d;

CREATE TEMP TRIGGER change_enqueue INSTEAD OF INSERT ON change WHEN NEW.op = 'enqueue' BEGIN
    INSERT INTO tasks (task_id, max_attempts, available_at, payload, name, format, enqueued_at)
    VALUES (NEW.key, NEW.claim, NEW.at, NEW.a, NEW.b, NEW.c, NEW.now);
END;

CREATE TEMP TRIGGER change_reserve INSTEAD OF INSERT ON change WHEN NEW.op = 'reserve' BEGIN
    INSERT INTO note SELECT 'buried', task_id, NEW.claim
        FROM tasks INDEXED BY tasks_spent WHERE finished_at IS NULL AND max_attempts <= attempt AND available_at <= NEW.now
        ORDER BY available_at, id LIMIT 100;
    UPDATE tasks SET status = 'failed', finished_at = NEW.now, claim = NULL,
        error = 'WorkerDiedError: each of ' || attempt || ' attempts ended with the death of its '
            || 'worker, or with a lease that was not renewed; the last one ran alone'
        WHERE task_id IN (SELECT key FROM note WHERE kind = 'buried' AND claim = NEW.claim);
    UPDATE tasks SET status = 'in_progress', attempt = attempt + 1, claim = NEW.claim, started_at = NEW.now, available_at = NEW.at
        WHERE NEW.a AND available_at <= ifnull((SELECT min(available_at) FROM tasks INDEXED BY tasks_due WHERE finished_at IS NULL AND max_attempts > attempt + 1), available_at)
        AND id = (SELECT id FROM tasks INDEXED BY tasks_last WHERE finished_at IS NULL AND max_attempts <= attempt + 1 AND max_attempts > attempt AND available_at <= NEW.now ORDER BY available_at, id LIMIT 1);
    UPDATE tasks SET status = 'in_progress', attempt = attempt + 1, claim = NEW.claim, started_at = NEW.now, available_at = NEW.at + oldest.n
        FROM (SELECT id AS key, row_number() OVER (ORDER BY available_at, id) AS n FROM (
            SELECT id, available_at FROM tasks INDEXED BY tasks_due WHERE finished_at IS NULL AND max_attempts > attempt + 1 AND available_at <= NEW.now
            ORDER BY available_at, id LIMIT NEW.key)) AS oldest
        WHERE tasks.id = oldest.key AND changes() = 0;
END;

CREATE TEMP TRIGGER change_renew INSTEAD OF INSERT ON change WHEN NEW.op = 'renew' BEGIN
    UPDATE tasks SET available_at = NEW.at WHERE id = NEW.key AND claim = NEW.claim AND finished_at IS NULL; INSERT INTO note SELECT 'refused', NEW.key, NEW.claim WHERE changes() = 0;
END;

CREATE TEMP TRIGGER change_finish INSTEAD OF INSERT ON change WHEN NEW.op = 'finish' BEGIN
    UPDATE tasks SET status = NEW.a, finished_at = NEW.now, result = NEW.b, error = NEW.c, traceback = NEW.d
        WHERE id = NEW.key AND claim = NEW.claim AND finished_at IS NULL;
    INSERT INTO note SELECT 'refused', NEW.key, NEW.claim WHERE changes() = 0;
END;

CREATE TEMP TRIGGER change_release INSTEAD OF INSERT ON change WHEN NEW.op = 'release' BEGIN
    UPDATE tasks SET status = 'pending', claim = NULL, attempt = attempt - 1,
        available_at = min(enqueued_at, NEW.now), started_at = CASE attempt WHEN 1 THEN NULL ELSE started_at END
        WHERE id = NEW.key AND claim = NEW.claim AND finished_at IS NULL;
    INSERT INTO note SELECT 'refused', NEW.key, NEW.claim WHERE changes() = 0;
END;

CREATE TEMP TRIGGER change_prune INSTEAD OF INSERT ON change WHEN NEW.op = 'prune' BEGIN
    DELETE FROM tasks WHERE id IN (SELECT id FROM tasks INDEXED BY tasks_finished WHERE finished_at IS NOT NULL AND finished_at < NEW.at LIMIT NEW.key);
END;
