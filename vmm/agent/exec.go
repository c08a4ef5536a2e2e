package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Command is a command to run in a guest.
type Command struct {
	Argv []string
	Env  []string // NAME=VALUE
	Cwd  string
	User string
	TTY  *Size
	// Stdin is read until its end; nil is none. With a Reader that cannot be
	// interrupted, its Read may outlast the command.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil discards
}

// Process is a command that runs in a guest.
type Process struct {
	conn    *Conn
	started Started

	credit chan int // at most one value: bytes of standard input that may be sent

	done   chan struct{} // closed when status and err are set
	status Status
	err    error
	abort  func()
	once   sync.Once
}

// Start asks for a command and returns when it runs, or could not be started.
// The stream serves this command only; when ctx is done it is closed, if it can
// be, and the agent ends the command with SIGHUP and SIGKILL.
func Start(ctx context.Context, stream io.ReadWriteCloser, c Command) (*Process, error) {
	p := &Process{conn: NewConn(stream), credit: make(chan int, 1), done: make(chan struct{})}
	p.credit <- Window
	p.abort = func() { p.once.Do(func() { stream.Close() }) }
	stop := context.AfterFunc(ctx, p.abort)
	fail := func(err error) (*Process, error) {
		stop()
		p.abort()
		return nil, ended(ctx, err)
	}
	r := Request{Op: OpExec, Argv: c.Argv, Env: c.Env, Cwd: c.Cwd, User: c.User, TTY: c.TTY}
	if err := p.conn.request(r); err != nil {
		return fail(err)
	}
	t, b, err := p.conn.Receive()
	if err == nil && t != TypeStarted {
		err = protocolf("message %d before the start", t)
	}
	if err == nil {
		err = decode(b, &p.started)
	}
	if err != nil {
		return fail(err)
	}
	go p.feed(c.Stdin)
	go func() {
		defer close(p.done)
		p.status, p.err = p.receive(c)
		p.err = ended(ctx, p.err)
		stop()
		p.abort()
	}()
	return p, nil
}

// ended prefers the reason why a stream was closed to the error this gave.
func ended(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe):
		return errors.New("the guest's agent hung up: the machine has ended, or its init has")
	}
	return err
}

// feed sends the standard input. An error shows itself to the receiver too.
func (p *Process) feed(in io.Reader) {
	if in != nil {
		buf := make([]byte, chunk)
		for {
			var may int
			select {
			case may = <-p.credit:
			case <-p.done:
				return
			}
			n, err := in.Read(buf[:min(may, chunk)])
			if n > 0 && p.conn.Send(TypeStdin, buf[:n]) != nil {
				return
			}
			p.grant(may - n)
			if err != nil {
				break
			}
		}
	}
	_ = p.conn.Send(TypeStdin)
}

// grant adds bytes to the credit, which is taken as a whole and put back. It is
// called by two goroutines; a value that is there is taken out first.
func (p *Process) grant(n int) {
	for n > 0 {
		select {
		case p.credit <- n:
			return
		case have := <-p.credit:
			n += have
		}
	}
}

// receive gives out what the command writes until it has ended.
func (p *Process) receive(c Command) (Status, error) {
	for {
		t, b, err := p.conn.Receive()
		if err != nil {
			return Status{}, err
		}
		var to io.Writer
		switch t {
		case TypeStdout:
			to = c.Stdout
		case TypeStderr:
			to = c.Stderr
		case TypeCredit:
			if len(b) != 4 || binary.LittleEndian.Uint32(b) > Window {
				return Status{}, protocolf("credit of %d bytes", len(b))
			}
			p.grant(int(binary.LittleEndian.Uint32(b)))
			continue
		case TypeExit:
			var s Status
			err := decode(b, &s)
			if err == nil && (s.Code < 0 || s.Code > 255) {
				err = protocolf("exit status %d", s.Code)
			}
			return s, err
		default:
			return Status{}, protocolf("message %d while a command runs", t)
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(b); err != nil {
			return Status{}, fmt.Errorf("writing what the command says: %w", err)
		}
	}
}

// PID is the command's process number in the guest.
func (p *Process) PID() int { return p.started.PID }

// Signal sends the command's process group a signal, by its name: "SIGTERM".
func (p *Process) Signal(name string) error {
	if !SignalName(name) {
		return fmt.Errorf("agent: %q is no signal's name", name)
	}
	return p.conn.Send(TypeSignal, []byte(name))
}

// SignalName tells whether s could be a signal's name.
func SignalName(s string) bool {
	return len(s) > 3 && len(s) <= 16 && s[:3] == "SIG" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
}

// Resize tells the command's terminal its size.
func (p *Process) Resize(s Size) error { return p.conn.SendJSON(TypeResize, s) }

// Wait returns when the command has ended and all it wrote has been given out.
func (p *Process) Wait() (Status, error) {
	<-p.done
	return p.status, p.err
}

// Ask makes a request that is answered by one status: OpShutdown, OpInfo.
func Ask(ctx context.Context, stream io.ReadWriteCloser, op string) (Started, error) {
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	c := NewConn(stream)
	var s Started
	if err := c.SendJSON(TypeRequest, Request{Op: op}); err != nil {
		return s, ended(ctx, err)
	}
	for {
		t, b, err := c.Receive()
		switch {
		case err != nil:
			return s, ended(ctx, err)
		case t == TypeStarted:
			if err := decode(b, &s); err != nil {
				return s, err
			}
		case t == TypeExit:
			return s, nil
		default:
			return s, protocolf("message %d as an answer", t)
		}
	}
}
