package loadtest

import "google.golang.org/grpc"

var (
	ReadEvents  = readEvents
	ReadMetrics = readMetrics
	Stamp       = Image.stamp
)

// Conn is the target's connection, for other calls.
func (g *GRPC) Conn() *grpc.ClientConn { return g.conn }

// IntervalOf is interval.
var IntervalOf = interval
