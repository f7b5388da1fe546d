package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/mmserve/mmserve/internal/admin"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/serving"
)

// auditFlags say where a server keeps its audit log.
type auditFlags struct {
	AuditLog      string        `name:"audit-log" placeholder:"FILE" env:"MMSERVE_AUDIT_LOG" help:"Keep an audit log: who asked for what and how it was decided, without content, in lines that are chained by hashes and signed (default: none is kept)."`
	AuditKey      string        `name:"audit-key" placeholder:"FILE" env:"MMSERVE_AUDIT_KEY" help:"Key that signs the audit log, made at the first start (default: the log's name and .key)."`
	AuditHeads    string        `name:"audit-heads" placeholder:"FILE" env:"MMSERVE_AUDIT_HEADS" help:"File of signed heads, which show whether the log was cut; best on another disk (default: the log's name and .heads)."`
	AuditRequired bool          `name:"audit-required" env:"MMSERVE_AUDIT_REQUIRED" help:"Answer nothing that the audit log cannot keep (default: requests go on, and the log says how many it lost; what operators do is refused either way)."`
	AuditMaxBytes byteSize      `name:"audit-max-bytes" default:"256MiB" env:"MMSERVE_AUDIT_MAX_BYTES" help:"Size of a file of the audit log, after which another is begun."`
	AuditKeep     time.Duration `name:"audit-keep" default:"0s" env:"MMSERVE_AUDIT_KEEP" help:"How long files of the audit log are kept after their last line, such as 8760h; 0 keeps them for good."`
}

// Bounds of --audit-max-bytes and --audit-keep.
const (
	minAuditBytes, maxAuditBytes = 64 << 10, 1 << 40
	maxAuditKeep                 = 100 * 365 * 24 * time.Hour
)

func (f auditFlags) check() error {
	switch b := int64(f.AuditMaxBytes); {
	case f.AuditLog == "" && (f.AuditKey != "" || f.AuditHeads != "" || f.AuditRequired):
		return errors.New("--audit-log is missing: the other --audit-… flags say how it is kept")
	case b < minAuditBytes || b > maxAuditBytes:
		return fmt.Errorf("--audit-max-bytes %d: want %d to %d", b, minAuditBytes, int64(maxAuditBytes))
	case f.AuditKeep < 0 || f.AuditKeep > maxAuditKeep:
		return fmt.Errorf("--audit-keep %v: want 0s to %v", f.AuditKeep, maxAuditKeep)
	}
	return nil
}

// open gives the log; nil where none is kept.
func (f auditFlags) open(log *slog.Logger) (*audit.Log, error) {
	if f.AuditLog == "" {
		return nil, nil
	}
	keys, err := audit.OpenKeys(auditKeyPath(f.AuditLog, f.AuditKey))
	if err != nil {
		return nil, err
	}
	return audit.Open(audit.Options{
		Path: f.AuditLog, Heads: f.AuditHeads, Keys: keys, MaxBytes: int64(f.AuditMaxBytes), Keep: f.AuditKeep,
		Program: "mmserve " + programVersion(), Logger: log,
	})
}

func auditKeyPath(log, key string) string {
	if key != "" {
		return key
	}
	return log + ".key"
}

// auditor is a log as servers take it: nil where there is none.
func auditor(l *audit.Log) serving.Auditor {
	if l == nil {
		return nil
	}
	return l
}

// closeAudit closes a log, if there is one.
func closeAudit(l *audit.Log) error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// auditAdmin has a log, if there is one, keep what operators do.
func auditAdmin(o *admin.Options, l *audit.Log) {
	if l != nil {
		o.Audit = l.RecordSync
	}
}

// auditModels notes what is served.
func auditModels(l *audit.Log, models *serving.Registry) {
	if l == nil {
		return
	}
	models.Each(func(d *serving.Deployment) {
		_ = l.Record(&audit.Event{ // the log says what it lost
			Kind: audit.KindAdmin, Action: "serve", Decision: "OK", Object: d.Model.Name,
			Generation: &audit.Generation{ModelDigest: d.Model.Digest, Fingerprint: d.Model.Fingerprint},
		})
	})
}

// auditReload keeps that files are read again at a signal. Nothing is read again that is not kept.
func auditReload(l *audit.Log, name string, reload func() error) error {
	if l == nil {
		return reload()
	}
	e := func(decision string) *audit.Event {
		return &audit.Event{Kind: audit.KindAdmin, Action: "reload", Decision: decision, Object: name}
	}
	if err := l.RecordSync(e("allowed")); err != nil {
		return err
	}
	err := reload()
	decision := "OK"
	if err != nil {
		decision = "INVALID_ARGUMENT"
	}
	_ = l.Record(e(decision)) // the line before says that it was begun
	return err
}

type auditCmd struct {
	Verify auditVerifyCmd `cmd:"" help:"Say whether lines of an audit log were edited, removed, put elsewhere or cut off."`
	Show   auditShowCmd   `cmd:"" help:"Print the line of a request."`
}

type auditVerifyCmd struct {
	Log    string `arg:"" placeholder:"FILE" help:"The audit log; its older files lie beside it."`
	Heads  string `placeholder:"FILE" help:"File of signed heads (default: the log's name and .heads)."`
	Public string `placeholder:"FILE" help:"File of public keys (default: the log's name and .pub)."`
	KeyID  string `name:"key-id" placeholder:"ID" help:"The key that counts, as a start of the server logs it: whoever writes all three files could have put another there."`
	Expect string `placeholder:"SEQ:HASH" help:"A head that was kept elsewhere: the log has to have this line."`
	JSON   bool   `name:"json" help:"Write the report as JSON."`
}

// Run prints a report; the exit status is 1 if anything is wrong.
func (c auditVerifyCmd) Run(out io.Writer) error {
	o := audit.VerifyOptions{Heads: c.Heads, Public: c.Public, KeyID: c.KeyID}
	if c.Expect != "" {
		seq, hash, _ := strings.Cut(c.Expect, ":")
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil {
			return fmt.Errorf("--expect %q: want SEQ:HASH, as the server's log has them of each head", c.Expect)
		}
		o.Expect = &audit.Head{Seq: n, Hash: hash}
	}
	r, err := audit.Verify(c.Log, o)
	if err != nil {
		return err
	}
	if err := c.write(out, r); err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		return exitError(1)
	}
	return nil
}

func (c auditVerifyCmd) write(out io.Writer, r *audit.Report) error {
	if c.JSON {
		return json.NewEncoder(out).Encode(r)
	}
	for _, p := range r.Problems {
		fmt.Fprintln(out, harmless(p))
	}
	fmt.Fprintf(out, "%d lines in %d files, %d to %d; %d heads, signed through %d", r.Lines, r.Files, r.First, r.Last,
		r.Heads, r.Signed)
	if r.Last > r.Signed {
		fmt.Fprintf(out, "; the last %d are chained, but no head is signed of them yet", r.Last-r.Signed)
	}
	if r.Lost > 0 {
		fmt.Fprintf(out, "; %d events could not be written, as the log says itself", r.Lost)
	}
	verdict := "nothing was changed"
	if len(r.Problems) > 0 {
		verdict = "THE LOG WAS CHANGED"
	}
	_, err := fmt.Fprintf(out, "\n%s; last hash %s\n", verdict, r.Hash)
	return err
}

type auditShowCmd struct {
	Log string `arg:"" placeholder:"FILE" help:"The audit log."`
	ID  string `arg:"" name:"request-id" help:"The request."`
}

// Run prints the line as JSON.
func (c auditShowCmd) Run(out io.Writer) error {
	l, err := audit.FindLine(c.Log, c.ID)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", harmlessJSON(text))
	return err
}
