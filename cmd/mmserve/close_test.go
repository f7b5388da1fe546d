package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCloseWithinLeavesBehindWhatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		failed := errors.New("failed")
		if err := closeWithin(time.Second, func() error { return failed }, log); err != failed || out.Len() > 0 {
			t.Errorf("got %v and %q", err, &out)
		}
		start := time.Now()
		err := closeWithin(time.Second, func() error { time.Sleep(time.Hour); return failed }, log)
		if took := time.Since(start); err != nil || took != time.Second || !strings.Contains(out.String(), "ending without") {
			t.Errorf("got %v and %q after %v", err, &out, took)
		}
		time.Sleep(time.Hour)
	})
}
