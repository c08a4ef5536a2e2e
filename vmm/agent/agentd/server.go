//go:build linux || netbsd

// Package agentd is the guest's side of package agent: it listens, makes sure
// that the caller has the machine's key, and runs commands, copies files and
// ends the machine for it. How processes are made and waited for is injected,
// as the first process of a system does it differently from all others.
package agentd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

const (
	// greetTime is how long a caller has to prove that it has the key.
	greetTime = 5 * time.Second
	// maxCalls bounds the calls served at once: each costs a few goroutines and
	// up to agent.Window bytes.
	maxCalls = 128
	// lastTime is how long an answer to a caller that is still sending may be on
	// its way before the connection is closed.
	lastTime = 5 * time.Second
)

// acceptPause is how long no call is taken when the system has nothing for one.
const acceptPause = 100 * time.Millisecond

// passing are accept(2)'s errors that are nobody's fault for ever.
var passing = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED}

// Server serves calls.
type Server struct {
	Key    agent.Key
	System System
	// Env and Cwd are those of the guest's own command: what a call begins with.
	Env []string
	Cwd string
	// Logf says what is wrong with callers; nil discards it.
	Logf func(format string, args ...any)
}

// System is what a server needs of the system it runs on.
type System interface {
	// Start starts a process as the leader of a group, and of a session with the
	// terminal at Files[0] if TTY. The channel gives its end, once.
	Start(Spec) (pid int, ended <-chan syscall.WaitStatus, err error)
	// Kill sends a signal to a process group.
	Kill(group int, sig syscall.Signal) error
	// Info tells of the system; PID is the server's.
	Info() agent.Started
	// Shutdown begins the machine's end and returns.
	Shutdown()
}

// Serve takes calls until the listener is closed, and returns when the last is over.
// A server may serve several listeners, each by a Serve of its own.
func (s *Server) Serve(l net.Listener) error {
	var calls sync.WaitGroup
	slots := make(chan struct{}, maxCalls)
	for {
		c, err := l.Accept()
		if err != nil {
			// Any program of the guest's can use up its files or buffers for a
			// while, and must not end the agent by that.
			if slices.ContainsFunc(passing, func(e error) bool { return errors.Is(err, e) }) {
				time.Sleep(acceptPause)
				continue
			}
			calls.Wait()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		calls.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			if err := s.call(c); err != nil && s.Logf != nil {
				s.Logf("a call from %v: %v", c.RemoteAddr(), err)
			}
		})
	}
}

// call serves one connection.
func (s *Server) call(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(greetTime)); err != nil {
		return err
	}
	if err := agent.Answer(c, s.Key); err != nil {
		return err
	}
	conn := agent.NewConn(c)
	r, err := conn.ReceiveRequest()
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := s.request(c, conn, r); err != nil && conn.SendError(err) == nil {
		parting(c)
		_, _ = io.Copy(io.Discard, c)
	}
	return nil
}

// parting says that no more will come, before a connection is read to its end: the
// caller may be sending still, and closing at once would reset the connection and take
// the last words with it. One that does not hang up in time is cut off.
func parting(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(lastTime))
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
}

func (s *Server) request(c net.Conn, conn *agent.Conn, r agent.Request) error {
	switch r.Op {
	case agent.OpExec:
		return s.exec(c, conn, r)
	case agent.OpRead:
		skipped, err := agent.SendTree(conn, r.Path, r.Follow)
		if len(skipped) > 0 && s.Logf != nil {
			s.Logf("%s: %d things that are neither file, folder nor link were not copied", r.Path, len(skipped))
		}
		return err
	case agent.OpWrite:
		place, err := agent.PlaceOf(r.Path)
		if err == nil {
			_, err = agent.ReceiveTree(conn, place)
		}
		if err != nil {
			return err
		}
		return conn.Send(agent.TypeDone)
	case agent.OpInfo, agent.OpShutdown:
		if err := conn.SendJSON(agent.TypeStarted, s.System.Info()); err != nil {
			return err
		}
		if err := conn.SendJSON(agent.TypeExit, agent.Status{}); err != nil {
			return err
		}
		if r.Op == agent.OpShutdown {
			s.System.Shutdown()
		}
		return nil
	}
	return fmt.Errorf("this agent does not know %q", r.Op)
}
