package server

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/mmserve/mmserve/internal/socket"
	"github.com/mmserve/mmserve/server/web"
)

// webRoutes are those of the playground. Its files need no credential: what the page asks for does.
func (h *httpServer) webRoutes() {
	if !h.options.HTTP.Playground {
		return
	}
	h.files = web.Files()
	for path := range h.files {
		pattern := path
		if path == "/" {
			pattern = "/{$}"
		}
		h.handle(http.MethodGet, pattern, (*exchange).webFile)
	}
	h.handle(http.MethodGet, serverInfoPath, (*exchange).webServer)
	h.handle(http.MethodGet, enginePath, (*exchange).webEngine)
}

// serverInfoPath is where the page learns what it cannot know of the server.
const serverInfoPath = web.Prefix + "server.json"

// webFile answers with a file of the playground. Browsers keep it, and ask each time whether it is still the same.
func (x *exchange) webFile() error {
	f := x.files[x.r.URL.Path]
	h := x.w.Header()
	h.Set("Content-Security-Policy", web.Policy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", f.ETag)
	h.Add("Vary", "Accept-Encoding")
	x.began = true
	if names(x.r.Header.Values("If-None-Match"), func(tag string) bool { return weak(tag) == weak(f.ETag) }) {
		x.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	body := f.Body
	if names(x.r.Header.Values("Accept-Encoding"), isGzip) {
		h.Set("Content-Encoding", "gzip")
		body = f.Zipped
	}
	h.Set("Content-Type", f.Type)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(http.StatusOK)
	_, _ = x.w.Write(body) // a client that left does not read it
	return nil
}

// names says that is finds an element of a list in headers.
func names(headers []string, is func(string) bool) bool {
	for _, line := range headers {
		for e := range strings.SplitSeq(line, ",") {
			if is(strings.TrimSpace(e)) {
				return true
			}
		}
	}
	return false
}

// weak is what an ETag compares as.
func weak(tag string) string { return strings.TrimPrefix(tag, "W/") }

// isGzip says that an encoding of Accept-Encoding is gzip, and not refused.
func isGzip(encoding string) bool {
	name, weight, _ := strings.Cut(encoding, ";")
	return strings.EqualFold(strings.TrimSpace(name), "gzip") && strings.TrimRight(strings.TrimSpace(weight), "0.") != "q="
}

// webServer says what the playground shows of the server, and where its gRPC is for requests as code.
func (x *exchange) webServer() error {
	o := x.options
	return x.write(struct {
		Version   string `json:"version"`
		GRPC      string `json:"grpc"`     // host:port, or unix:///path
		GRPCTLS   bool   `json:"grpc_tls"` // by the credentials, which may want certificates too
		Keys      bool   `json:"keys"`     // requests need a credential
		MaxImages int    `json:"max_images"`
		MaxBytes  int    `json:"max_message_bytes"`
	}{o.Version, address(x.grpcAddress), o.Credentials != nil, o.Auth != nil, o.MaxImages, o.MaxMessageBytes})
}

// address is one that clients dial.
func address(a net.Addr) string {
	switch {
	case a == nil:
		return ""
	case a.Network() == "unix":
		return "unix://" + a.String()
	}
	return a.String()
}

// ownPage says that a request comes from a page of this server: the page's host is the one that is asked. A name may
// have been made to resolve to here: only credentials and certificates tell then, and IP addresses are no names.
func (x *exchange) ownPage(origin string) bool {
	_, host, ok := strings.Cut(origin, "://")
	if !ok || x.files == nil || !strings.EqualFold(host, x.r.Host) {
		return false
	}
	return x.options.Auth != nil || x.options.HTTP.TLS != nil || socket.OwnHost(host)
}
