package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
)

// Events gives what happens to the machine: first what already has, as far as
// it is kept, then each event as it comes, until the machine has ended, ctx is
// done or the loop is left. An error is the last thing that comes.
//
//	for e, err := range c.Events(ctx) { … }
func (c *Client) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		const path = "/smolvmm/events"
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		resp, err := c.send(ctx, http.MethodGet, path, nil)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			if len(bytes.TrimSpace(lines.Bytes())) == 0 {
				continue // an empty line says nothing
			}
			var e Event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				yield(Event{}, fmt.Errorf("GET %s: an event makes no sense: %w", path, err))
				return
			}
			if !yield(e, nil) || e.Event == EventEnded {
				return
			}
		}
		err = lines.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		yield(Event{}, gone(ctx, http.MethodGet, path, err))
	}
}

// Wait waits for the guest's end and says how it was. ErrGone is a process that
// went without a word.
func (c *Client) Wait(ctx context.Context) (Exit, error) {
	for e, err := range c.Events(ctx) {
		switch {
		case err != nil:
			return Exit{}, err
		case e.Event == EventEnded && e.Exit != nil:
			return *e.Exit, nil
		}
	}
	return Exit{}, errors.New("the machine ended and did not say how")
}

// AgentProtocol is the name in the Upgrade header of GET /smolvmm/agent.
const AgentProtocol = "smolvmm-agent"

// Agent gives a byte stream to the agent in the guest. The stream is ready for
// the agent's protocol: who the caller is has been checked, and the key is the
// process's affair. ctx bounds the opening, not the stream.
func (c *Client) Agent(ctx context.Context) (net.Conn, error) {
	const path = "/smolvmm/agent"
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, gone(ctx, http.MethodGet, path, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s, err := c.upgrade(conn, path)
	if !stop() && err == nil {
		err = context.Cause(ctx) // it was closed under our hands
	}
	var refused *Error
	if err == nil || errors.As(err, &refused) {
		if err != nil {
			conn.Close()
			return nil, err
		}
		return s, nil
	}
	conn.Close()
	return nil, gone(ctx, http.MethodGet, path, err)
}

// upgrade turns a connection into a stream (RFC 9110 §7.8).
func (c *Client) upgrade(conn net.Conn, path string) (net.Conn, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", path, AgentProtocol)
	if err != nil {
		return nil, err
	}
	bound := &io.LimitedReader{R: conn, N: maxHead}
	r := bufio.NewReader(bound)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		if bound.N <= 0 {
			err = fmt.Errorf("the answer's head has more than %d bytes", maxHead)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, fault(http.MethodGet, path, resp)
	}
	return &stream{Conn: conn, r: r}, nil
}

// stream is a connection of which some bytes may have been read ahead.
type stream struct {
	net.Conn
	r *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) {
	if s.r.Buffered() > 0 {
		return s.r.Read(p)
	}
	return s.Conn.Read(p)
}

// CloseWrite ends this side's half.
func (s *stream) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
