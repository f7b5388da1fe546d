package conversation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"modernc.org/sqlite"
)

// SQLiteFiles says where a store's files lie.
type SQLiteFiles struct {
	// Data has what is sealed.
	Data string
	// Keys has what opens it, wrapped. A copy of Data is of use as long as Keys has the key of a subject: back it up
	// apart, or not at all. Default: Data with ".keys" after it.
	Keys string
}

var sqliteDialect = dialect{
	bytes: "BLOB",
	again: func(err error) bool {
		var e *sqlite.Error
		if !errors.As(err, &e) {
			return false
		}
		primary := e.Code() & 0xff
		return primary == sqliteBusy || primary == sqliteLocked
	},
	reading: &sql.TxOptions{ReadOnly: true},
}

// Codes of errors that another connection's transaction causes.
const sqliteBusy, sqliteLocked = 5, 6

// sqliteReaders is how many connections read beside the one that writes.
const sqliteReaders = 4

// OpenSQLite opens a store in files of this machine, which it makes where there are none. Several processes may have it
// open. Its database is of the version of this mmserve afterwards.
func OpenSQLite(ctx context.Context, files SQLiteFiles, o Options) (Store, error) {
	if files.Keys == "" {
		files.Keys = files.Data + ".keys"
	}
	keys, err := openSQLite(files.Keys, 1)
	if err != nil {
		return nil, err
	}
	data, err := openSQLite(files.Data, sqliteReaders)
	if err != nil {
		return nil, errors.Join(err, keys.close())
	}
	return open(ctx, data, keys, o)
}

func openSQLite(path string, readers int) (*database, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// SQLite gives its other files the permissions of this one.
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("conversations: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	write, err := sql.Open("sqlite", sqliteDSN(abs, "immediate"))
	if err != nil {
		return nil, err
	}
	write.SetMaxOpenConns(1)
	read, err := sql.Open("sqlite", sqliteDSN(abs, "deferred"))
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	d := &database{dialect: &sqliteDialect, write: write, read: read}
	d.checkpoint()
	return d, nil
}

// checkpointEvery is how many updates are moved from the log to the database at once.
const checkpointEvery = 200

// checkpoint has a goroutine do so beside the updates, until the database is closed: SQLite would have one update in
// some wait for it. Where the goroutine cannot keep up SQLite still does, at the bound in sqliteDSN.
func (d *database) checkpoint() {
	due, ended := make(chan struct{}, 1), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	var updates atomic.Int64
	d.updated = func() {
		if updates.Add(1)%checkpointEvery == 0 {
			select {
			case due <- struct{}{}:
			default: // one is due already
			}
		}
	}
	d.stop = sync.OnceFunc(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case <-due:
				_, _ = d.read.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)") // the next one does what this leaves
			case <-ctx.Done():
				return
			}
		}
	}()
}

// sqliteDSN names a file with how it is opened: what is committed has reached the disk, what is deleted is overwritten,
// and no temporary files are made.
func sqliteDSN(path, lock string) string {
	q := url.Values{"_txlock": {lock}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "secure_delete(ON)", "foreign_keys(ON)",
		"temp_store(MEMORY)", "cache_size(-16000)", "journal_size_limit(67108864)", "wal_autocheckpoint(16384)",
	}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}
