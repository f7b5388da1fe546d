package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// way is one way in which streams come to the servers.
type way struct {
	name string
	// missing says what is not there for it; empty: nothing.
	missing func(options) string
	// open starts what stands between sender and servers, and says where streams go. stop ends it and gives its log.
	open func(context.Context, options, string) (target string, stop func() string, err error)
	send func(ctx context.Context, o options, target, what string) ([]outcome, error)
}

// ways in the order in which they are tried. Those before haproxy and nginx have no retries: what a balancer cannot
// mend is lost. A killed server is mended by the documented service config, or by client's defaults.
var ways = []way{
	{"grpc", nothing, direct, sendRoundRobin},
	{"client", nothing, direct, sendClient},
	{"haproxy", program("haproxy"), openHAProxy, sendPlain},
	{"nginx", program("nginx"), openNginx, sendPlain},
	{"python", foreign(python, "-c", "import grpc, google.protobuf"), directIPv4, sendForeign(python, "stream.py")},
	{"node", foreign("node", "-e", "require('./clients/node/node_modules/@grpc/grpc-js')"), directIPv4,
		sendForeign("node", "stream.mjs")},
}

// python is the Python that has Debian's python3-grpcio; another may stand before it in the path.
const python = "/usr/bin/python3"

func nothing(options) string { return "" }

// program is what is missing where a program is not installed.
func program(name string) func(options) string {
	return func(options) string {
		if _, err := exec.LookPath(name); err != nil {
			return err.Error()
		}
		return ""
	}
}

// foreign is what is missing where a check in another language fails.
func foreign(name string, args ...string) func(options) string {
	return func(o options) string {
		c := exec.Command(name, args...)
		c.Dir = o.root
		if out, err := c.CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			return fmt.Sprintf("%v: %s", err, lines[len(lines)-1])
		}
		return ""
	}
}

// direct is no balancer: the client knows the servers, as from a headless service's name.
func direct(_ context.Context, o options, _ string) (string, func() string, error) {
	var list []string
	for i := range replicas {
		list = append(list, o.address(i))
	}
	return strings.Join(list, ","), func() string { return "" }, nil
}

// directIPv4 is direct for clients that take gRPC's scheme of several addresses.
func directIPv4(ctx context.Context, o options, dir string) (string, func() string, error) {
	list, stop, err := direct(ctx, o, dir)
	return "ipv4:" + list, stop, err
}

func openHAProxy(ctx context.Context, o options, dir string) (string, func() string, error) {
	return o.openBalancer(ctx, dir, "haproxy.cfg", func(file string) *exec.Cmd {
		return exec.Command("haproxy", "-db", "-f", file)
	})
}

func openNginx(ctx context.Context, o options, dir string) (string, func() string, error) {
	return o.openBalancer(ctx, dir, "nginx.conf", func(file string) *exec.Cmd {
		return exec.Command("nginx", "-p", dir, "-c", file, "-e", "stderr",
			"-g", "daemon off; pid "+filepath.Join(dir, "nginx.pid")+";")
	})
}

// localized is a balancer's documented configuration with the addresses of this run's servers.
func (o options) localized(name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(o.root, "deploy", "balancers", name))
	if err != nil {
		return nil, err
	}
	var swaps []string
	for i := range replicas {
		name := fmt.Sprintf("mmserve-%d:8080", i)
		if !bytes.Contains(text, []byte(name)) {
			return nil, fmt.Errorf("deploy/balancers: no %s", name)
		}
		swaps = append(swaps, name, o.address(i))
	}
	swaps = append(swaps, "bind :8080", fmt.Sprintf("bind 127.0.0.1:%d", o.balancer()),
		"listen 8080", fmt.Sprintf("listen 127.0.0.1:%d", o.balancer()), "port 9464", fmt.Sprintf("port %d", o.admin()))
	return []byte(strings.NewReplacer(swaps...).Replace(string(text))), nil
}

// openBalancer runs a balancer with its documented configuration until stop.
func (o options) openBalancer(ctx context.Context, dir, name string,
	command func(file string) *exec.Cmd) (target string, stop func() string, err error) {
	text, err := o.localized(name)
	if err != nil {
		return "", nil, err
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return "", nil, err
	}
	c := command(file)
	c.Dir = dir
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	stop = func() string {
		_ = c.Process.Signal(syscall.SIGTERM) // a process that has ended is no error
		<-ended
		return log.String()
	}
	target = net.JoinHostPort("127.0.0.1", strconv.Itoa(o.balancer()))
	for range 100 {
		if conn, err := net.Dial("tcp", target); err == nil {
			_ = conn.Close()
			return target, stop, wait(ctx, 2*time.Second) // it checks the servers
		}
		select {
		case err := <-ended:
			return "", nil, fmt.Errorf("%s ended: %w\n%s", name, err, &log)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return "", nil, fmt.Errorf("%s does not listen\n%s", name, stop())
}

// sendForeign runs a sender in another language with the documented service config.
func sendForeign(name, script string) func(context.Context, options, string, string) ([]outcome, error) {
	return func(ctx context.Context, o options, target, _ string) ([]outcome, error) {
		c := exec.CommandContext(ctx, name, filepath.Join(o.root, "cmd", "rollout", script), filepath.Join(o.root, "clients"),
			target, filepath.Join(o.root, "deploy", "balancers", "service-config.json"),
			fmt.Sprint(o.rate), strconv.Itoa(o.streams), strconv.Itoa(o.tokens), "stream")
		c.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s", script, err, &errs)
		}
		var list []outcome
		scan := bufio.NewScanner(bytes.NewReader(out))
		for scan.Scan() {
			var o outcome
			if err := json.Unmarshal(scan.Bytes(), &o); err != nil {
				return nil, fmt.Errorf("%s: %q: %w", script, scan.Text(), err)
			}
			list = append(list, o)
		}
		if len(list) == 0 {
			return nil, errors.Join(errors.New(script+" sent nothing"), scan.Err())
		}
		return list, scan.Err()
	}
}
