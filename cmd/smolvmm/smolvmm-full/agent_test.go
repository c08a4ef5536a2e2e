package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/vmm/agent"
)

// greeter is an agent that only greets, and answers one question.
func greeter(key agent.Key) way {
	return func(context.Context) (net.Conn, error) {
		host, guest := net.Pipe()
		go func() {
			defer guest.Close()
			if agent.Answer(guest, key) != nil {
				return
			}
			c := agent.NewConn(guest)
			if r, err := c.ReceiveRequest(); err != nil || r.Op != agent.OpInfo {
				return
			}
			_ = c.SendJSON(agent.TypeStarted, agent.Started{PID: 1})
			_ = c.SendJSON(agent.TypeExit, agent.Status{})
		}()
		return host, nil
	}
}

// TestGuestAgent: the agent is found on whichever way it answers, is waited for
// while the guest boots, and is known to have gone afterwards.
func TestGuestAgent(t *testing.T) {
	key := agent.NewKey()
	nobody := func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done() // a guest without a driver
		return nil, context.Cause(ctx)
	}
	var tries atomic.Int32
	booting := func(ctx context.Context) (net.Conn, error) {
		if tries.Add(1) < 4 {
			return nil, syscall.ECONNREFUSED
		}
		return greeter(key)(ctx)
	}
	for name, ways := range map[string][]way{"the first": {greeter(key), nobody}, "the second": {nobody, greeter(key)}, "late": {booting}} {
		g := &guestAgent{key: key, ways: ways}
		if err := g.answers(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if g.found.Load() == nil {
			t.Errorf("%s: it is not remembered", name)
		}
	}
	gone := &guestAgent{key: key, ways: []way{greeter(key)}}
	if err := gone.answers(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone.ways[0] = func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	if _, err := gone.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "has gone") {
		t.Errorf("of an agent that has gone: %v", err)
	}
}

// TestGuestAgentWrong: who has another key is told of at once; nobody at all when
// there is no more time.
func TestGuestAgentWrong(t *testing.T) {
	key := agent.NewKey()
	refused := func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	g := &guestAgent{key: key, ways: []way{greeter(agent.NewKey())}}
	if err := g.answers(t.Context()); !errors.Is(err, agent.ErrKey) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	g = &guestAgent{key: key, ways: []way{refused, greeter(agent.NewKey())}}
	if err := g.answers(ctx); !errors.Is(err, agent.ErrKey) {
		t.Errorf("one way is nobody's, the other's is wrong: %v", err)
	}
	g = &guestAgent{key: key, ways: []way{refused, refused}}
	if err := g.answers(ctx); !errors.Is(err, api.ErrNoAgent) {
		t.Errorf("nobody: %v", err)
	}
}
