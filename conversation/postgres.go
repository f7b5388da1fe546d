package conversation

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// PostgresURLs say which databases a store is in.
type PostgresURLs struct {
	// Data has what is sealed, in the schema mmserve.
	Data string
	// Keys has what opens it, wrapped, in the schema mmserve_keys. A backup of Data is of use as long as Keys has the key
	// of a subject: back it up apart, or not at all. Default: Data.
	Keys string
	// Connections is the most at once to Data. Default: 8.
	Connections int
}

var postgresDialect = dialect{
	bytes: "BYTEA", numbered: true, lock: " FOR UPDATE", uncertain: true,
	migrating: "SELECT pg_advisory_xact_lock(7061706571)", // a number of mmserve's own
	again:     passes,
	reading:   &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
}

// passing are errors of PostgreSQL that go away: serialization failures, deadlocks, too many connections, and those of
// a server that stops, crashed or starts. Class 08, connections, counts as well.
var passing = []string{"40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03"}

// passes says that an error goes away by itself.
func passes(err error) bool {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return slices.Contains(passing, e.Code) || strings.HasPrefix(e.Code, "08")
	}
	var opened *pgconn.ConnectError
	var network net.Error
	return pgconn.SafeToRetry(err) || errors.As(err, &opened) || errors.As(err, &network) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, pgx.ErrTxCommitRollback)
}

// OpenPostgres opens a store in a PostgreSQL database, whose schemas it makes if there are none. Calls go on through a
// restart of the database of up to half a minute. It is of the version of this mmserve afterwards.
func OpenPostgres(ctx context.Context, urls PostgresURLs, o Options) (Store, error) {
	setDefault(&urls.Keys, urls.Data)
	setDefault(&urls.Connections, 8)
	keys, err := openPostgres(ctx, urls.Keys, "mmserve_keys", 2)
	if err != nil {
		return nil, err
	}
	data, err := openPostgres(ctx, urls.Data, "mmserve", urls.Connections)
	if err != nil {
		return nil, errors.Join(err, keys.close())
	}
	return open(ctx, data, keys, o)
}

func openPostgres(ctx context.Context, url, schema string, connections int) (*database, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, errors.New("conversations: no URL of a PostgreSQL database, as postgres://user@host/name")
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 5 * time.Second
	}
	config.RuntimeParams["search_path"] = schema
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "mmserve"
	}
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	db.SetConnMaxLifetime(30 * time.Minute)
	d := &database{dialect: &postgresDialect, write: db, read: db}
	err = d.update(ctx, func(t *tx, _ bool) error {
		if _, err := t.tx.ExecContext(ctx, t.migrating); err != nil {
			return err
		}
		_, err := t.tx.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("conversations: %w", err), d.close())
	}
	return d, nil
}
