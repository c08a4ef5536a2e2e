// Package peer is the other end of what netcheck does in a guest: the servers
// that it talks to, and the bytes that both sides know.
package peer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
)

// Bytes are the ones that go both ways: the same noise on each side.
func Bytes() io.Reader { return rand.NewChaCha8([32]byte{'n', 'e', 't'}) }

// Sum is the checksum of the first size of them.
func Sum(size int64) string {
	h := sha256.New()
	_, _ = io.CopyN(h, Bytes(), size)
	return hex.EncodeToString(h.Sum(nil))
}

// Handler serves the bytes at /bytes, takes them at /put and answers with their
// checksum, gives a short page at /, and calls end once for /end.
func Handler(size int64, end func()) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bytes", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = io.CopyN(w, Bytes(), size)
	})
	mux.HandleFunc("PUT /put", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		if _, err := io.Copy(h, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, hex.EncodeToString(h.Sum(nil)))
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	mux.HandleFunc("GET /end", func(w http.ResponseWriter, r *http.Request) { end() })
	return mux
}

// Echo gives datagrams back, until c is closed.
func Echo(c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

// Half is the server that answers with what it got once that has ended, until l is closed.
func Half(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if got, err := io.ReadAll(io.LimitReader(c, 1024)); err == nil {
				_, _ = c.Write(got)
			}
		}()
	}
}
