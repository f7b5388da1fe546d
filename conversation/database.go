package conversation

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"
)

//go:embed migrations
var migrations embed.FS

// dialect is what tells two databases apart for the statements here.
type dialect struct {
	// bytes is the type of columns of bytes.
	bytes string
	// numbered says that parameters are written $1, $2 …
	numbered bool
	// lock ends a SELECT whose rows are about to be changed.
	lock string
	// migrating begins a transaction that migrates.
	migrating string
	// uncertain says that a connection may break between a commit and its answer, so that an append needs a key.
	uncertain bool
	// again says that an error goes away, and that what failed may be done once more.
	again func(error) bool
	// reading are the options of a transaction that reads.
	reading *sql.TxOptions
}

// database is connections to one database.
type database struct {
	*dialect
	write, read *sql.DB
	// updated, unless nil, is told of each update, and stop ends what was begun with the database.
	updated func()
	stop    func()
}

// tx is a transaction.
type tx struct {
	*dialect
	tx *sql.Tx
}

// Bounds of trying again: a database that restarts is waited for so long.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 500 * time.Millisecond
	retryTime  = 30 * time.Second
)

// update runs do in a transaction, again as long as that helps. do may have been done before: where the answer to a
// commit was lost, again is true.
func (d *database) update(ctx context.Context, do func(t *tx, again bool) error) error {
	err := d.retry(ctx, func(again bool) error {
		return d.in(ctx, d.write, nil, func(t *tx) error { return do(t, again) })
	})
	if d.updated != nil {
		d.updated()
	}
	return err
}

// view runs do in a transaction that reads, which sees one state of the database.
func (d *database) view(ctx context.Context, do func(t *tx) error) error {
	return d.retry(ctx, func(bool) error { return d.in(ctx, d.read, d.reading, do) })
}

func (d *database) retry(ctx context.Context, do func(again bool) error) error {
	began, wait := time.Now(), firstRetry
	for tries := 0; ; tries++ {
		err := do(tries > 0)
		if err == nil || ctx.Err() != nil || !d.again(err) || time.Since(began) > retryTime {
			return err
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait = min(2*wait, lastRetry)
	}
}

func (d *database) in(ctx context.Context, db *sql.DB, o *sql.TxOptions, do func(t *tx) error) error {
	t, err := db.BeginTx(ctx, o)
	if err != nil {
		return err
	}
	if err := do(&tx{d.dialect, t}); err != nil {
		_ = t.Rollback() // the first error says more
		return err
	}
	return t.Commit()
}

func (d *database) close() error {
	if d.stop != nil {
		d.stop()
	}
	return errors.Join(d.write.Close(), d.read.Close())
}

// sql writes the parameters of a statement, ?, as the database has them.
func (d *dialect) sql(query string) string {
	if !d.numbered {
		return query
	}
	var b strings.Builder
	n := 0
	for {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		n++
		fmt.Fprintf(&b, "$%d", n)
		query = after
	}
}

// exec runs a statement and counts the rows it changed.
func (t *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	r, err := t.tx.ExecContext(ctx, t.sql(query), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// row is a query of at most one row. Without one its Scan fails with sql.ErrNoRows.
func (t *tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(ctx, t.sql(query), args...)
}

// each calls scan for every row of a query.
func (t *tx) each(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) error {
	rows, err := t.tx.QueryContext(ctx, t.sql(query), args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // rows.Err has what there is
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// migrate brings a database up to date with the statements in a folder of migrations, each file in a transaction.
func (d *database) migrate(ctx context.Context, folder string) error {
	files, err := fs.Glob(migrations, "migrations/"+folder+"/*.sql")
	if err != nil {
		return err
	}
	for i, file := range files {
		text, err := migrations.ReadFile(file)
		if err != nil {
			return err
		}
		err = d.update(ctx, func(t *tx, _ bool) error { return t.migrateTo(ctx, int64(i+1), len(files), string(text)) })
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// migrateTo runs the statements of a version unless they have been run. A database of a later mmserve is refused.
func (t *tx) migrateTo(ctx context.Context, version int64, newest int, text string) error {
	if t.migrating != "" {
		if _, err := t.tx.ExecContext(ctx, t.migrating); err != nil {
			return err
		}
	}
	if _, err := t.exec(ctx, `CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY)`); err != nil {
		return err
	}
	var has int64
	if err := t.row(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_version`).Scan(&has); err != nil {
		return err
	}
	if has > int64(newest) {
		return fmt.Errorf("the database is of version %d, this mmserve knows those up to %d", has, newest)
	}
	if has >= version {
		return nil
	}
	if _, err := t.tx.ExecContext(ctx, strings.ReplaceAll(text, "BYTEA", t.bytes)); err != nil {
		return err
	}
	_, err := t.exec(ctx, `INSERT INTO schema_version (version) VALUES (?)`, version)
	return err
}
