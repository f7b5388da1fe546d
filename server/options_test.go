package server

import (
	"testing"
	"time"
)

// TestOptionsDefaults holds what a field that is not set stands for, and that one that is set stays.
func TestOptionsDefaults(t *testing.T) {
	o := Options{}.withDefaults()
	if o.MaxMessageBytes != 64<<20 || o.MaxTextBytes != 1<<20 || o.MaxImages != 16 || o.MaxStop != 16 || o.Logger == nil ||
		o.Grace != 30*time.Second || o.MaxInflightBytes != 128<<20 || o.MaxConnections != 1024 || o.MaxStreams != 1024 ||
		o.ReceiveTimeout != 30*time.Second {
		t.Errorf("%+v", o)
	}
	o = Options{MaxMessageBytes: 100 << 20, MaxTextBytes: 1, MaxImages: 2, MaxStop: 3, Grace: 4}.withDefaults()
	if o.MaxMessageBytes != 100<<20 || o.MaxInflightBytes != 200<<20 || o.MaxTextBytes != 1 || o.MaxImages != 2 ||
		o.MaxStop != 3 || o.Grace != 4 {
		t.Errorf("%+v", o)
	}
	o = Options{MaxInflightBytes: 5, MaxConnections: 6, MaxStreams: 7, ReceiveTimeout: 8}.withDefaults()
	if o.MaxInflightBytes != 5 || o.MaxConnections != 6 || o.MaxStreams != 7 || o.ReceiveTimeout != 8 {
		t.Errorf("%+v", o)
	}
}
