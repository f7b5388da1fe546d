// Package sockettest finds addresses for servers of tests.
package sockettest

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
)

// Systems take the ports of outgoing connections and of listeners that name none from 32768 up. A port below is not
// taken by one of those between FreeAddress and the server that is to listen there.
const firstPort, ports = 10000, 22000

// handedOut counts the ports that this process tried. Processes that test at once start far from each other.
var handedOut atomic.Int64

// FreeAddress is an address of this host that nobody listens on. No other call in this process gives the same.
func FreeAddress(t testing.TB) string {
	t.Helper()
	for range ports {
		n := int64(os.Getpid())*211 + handedOut.Add(1)
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+n%ports)
		if lis, err := net.Listen("tcp", addr); err == nil {
			lis.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}
