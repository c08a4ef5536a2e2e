package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// block is how much the server reads and writes at once, in bytes.
const block = 256 << 10

// server is the host's side of one run: it serves the guest's connections on a
// port of the loopback interface and measures what it sees.
type server struct {
	l    net.Listener
	kind Kind
	n    int64 // bytes, round trips or connections
	done chan result
}

// result is what the server saw.
type result struct {
	took  time.Duration // from the first byte, or connection, to the last
	bytes int64         // received, or sent and acknowledged by the guest's FIN
	times int64         // round trips, or connections
	err   error
}

func serve(k Kind, n int64) (*server, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{l: l, kind: k, n: n, done: make(chan result, 1)}
	go func() { s.done <- s.run() }()
	return s, nil
}

func (s *server) port() int { return s.l.Addr().(*net.TCPAddr).Port }

func (s *server) close() { s.l.Close() }

func (s *server) run() (r result) {
	if s.kind == Connections {
		return s.connections()
	}
	c, err := s.l.Accept()
	if err != nil {
		return result{err: err}
	}
	defer c.Close()
	switch s.kind {
	case Up:
		r = sink(c)
	case Down:
		r = source(c, s.n)
	case RoundTrips:
		r = echo(c)
	}
	if r.err == nil && s.kind != RoundTrips && r.bytes != s.n {
		r.err = fmt.Errorf("%d bytes came through of %d", r.bytes, s.n)
	}
	return r
}

// sink reads to the guest's FIN. The clock starts at the first byte.
func sink(c net.Conn) (r result) {
	buf := make([]byte, block)
	var began time.Time
	for {
		n, err := c.Read(buf)
		if r.bytes == 0 && n > 0 {
			began = time.Now()
		}
		r.bytes += int64(n)
		if err != nil {
			r.took = time.Since(began)
			if !errors.Is(err, io.EOF) {
				r.err = err
			}
			return r
		}
	}
}

// source writes n bytes and a FIN, and waits for the guest's, which it sends
// when it has all of them.
func source(c net.Conn, n int64) (r result) {
	buf := make([]byte, block)
	began := time.Now()
	for left := n; left > 0; {
		m, err := c.Write(buf[:min(left, block)])
		left -= int64(m)
		if err != nil {
			r.err = err
			return r
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		r.err = err
		return r
	}
	if _, err := c.Read(buf[:1]); !errors.Is(err, io.EOF) {
		r.err = fmt.Errorf("waiting for the guest's FIN: %w", err)
	}
	r.took, r.bytes = time.Since(began), n
	return r
}

// echo gives every byte back.
func echo(c net.Conn) (r result) {
	buf := make([]byte, 1)
	in := bufio.NewReaderSize(c, 1)
	var began time.Time
	for {
		if _, err := io.ReadFull(in, buf); err != nil {
			r.took = time.Since(began)
			if !errors.Is(err, io.EOF) {
				r.err = err
			}
			return r
		}
		if r.times == 0 {
			began = time.Now()
		}
		r.times++
		if _, err := c.Write(buf); err != nil {
			r.err = err
			return r
		}
	}
}

// connections takes n connections, one after the other.
func (s *server) connections() (r result) {
	var began time.Time
	buf := make([]byte, 1)
	for r.times < s.n {
		c, err := s.l.Accept()
		if err != nil {
			r.err = err
			return r
		}
		if r.times == 0 {
			began = time.Now()
		}
		r.times++
		_, err = c.Read(buf)
		c.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			r.err = err
			return r
		}
	}
	r.took = time.Since(began)
	return r
}
