package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
)

// A machine in the background is this program again, in a session of its own,
// started by `run -d`: it makes the machine as `run` does and tells over a socket
// what it has to say and when the guest is ready. Until then the two live and
// die together.

// machineName is the argv[0] of the process in the background.
const machineName = "smolvmm-machine"

// parentFD is the socket to whoever started it.
const parentFD = 3

// sigHangup is what the end of whoever started it is like.
const sigHangup = syscall.SIGHUP

// message is what the machine's process says, a line of JSON each.
type message struct {
	Line  string `json:"line,omitempty"`  // for standard error
	Ready string `json:"ready,omitempty"` // the machine's name
}

// detach starts the process in the background and waits for it to be ready or
// to end.
func detach(args []string, s cli.Streams) error {
	if os.Args[0] == machineName {
		// Whatever goes wrong, one that was started never starts another.
		return errors.New("-detach: a machine in the background goes to no background")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("-detach: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "machine"), os.NewFile(uintptr(pair[1]), "parent")
	defer ours.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		theirs.Close()
		return fmt.Errorf("-detach: %w", err)
	}
	p, err := os.StartProcess("/proc/self/exe", append([]string{machineName, "run"}, args...), &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{null, null, null, theirs}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	null.Close()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("-detach: %w", err)
	}
	d := json.NewDecoder(ours)
	for {
		var m message
		if err := d.Decode(&m); err != nil {
			break
		}
		if m.Line != "" {
			fmt.Fprint(s.Err, m.Line)
		}
		if m.Ready != "" {
			fmt.Fprintln(s.Out, m.Ready)
			_ = p.Release()
			return nil
		}
	}
	// It has ended, or is about to; what it had to say it has said.
	st, err := p.Wait()
	if err != nil {
		return fmt.Errorf("-detach: %w", err)
	}
	ws := st.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return fmt.Errorf("the machine's process died before the guest was ready: %v", ws.Signal())
	}
	if ws.ExitStatus() == 0 {
		return &cli.StatusError{Status: cli.StatusFailed, Err: errors.New("the guest ended before it was ready, with status 0 (--ready start does not wait)")}
	}
	return &cli.StatusError{Status: ws.ExitStatus()}
}

// parent is the machine's end of it. A nil one does nothing.
type parent struct {
	f    *os.File
	log  atomic.Pointer[io.Writer] // what is said from when the machine has a log
	mu   sync.Mutex
	gone bool // ready or not: nobody listens any more
}

// machineMain is the process in the background.
func machineMain(args []string) int {
	unix.CloseOnExec(parentFD)
	_ = unix.SetNonblock(parentFD, true)
	p := &parent{f: os.NewFile(parentFD, "parent")}
	s := cli.OwnStreams()
	s.Out, s.Err = io.Discard, p
	s.Started = func() {
		cli.CloseInherited()
		_ = os.Chdir("/") // so that no folder is held
	}
	status := full().Run(args, s)
	p.close()
	return status
}

// parentOf is who waits for this process's machine to be ready, and nil in all but
// those in the background.
func parentOf(s cli.Streams) *parent {
	p, _ := s.Err.(*parent)
	return p
}

// Write passes on what is meant for standard error.
func (p *parent) Write(b []byte) (int, error) {
	if w := p.log.Load(); w != nil {
		_, _ = (*w).Write(b)
	}
	p.say(message{Line: strings.ToValidUTF8(string(b), "?")})
	return len(b), nil
}

func (p *parent) say(m message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return
	}
	b, err := json.Marshal(m)
	if err == nil {
		_, _ = p.f.Write(append(b, '\n'))
	}
}

// ready tells that the guest is, and lets the parent go.
func (p *parent) ready(name string) {
	if p == nil {
		return
	}
	p.say(message{Ready: name})
	p.close()
}

func (p *parent) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		p.gone = true
		p.f.Close()
	}
}

// onGone calls what is to be done when the parent goes before ready.
func (p *parent) onGone(do func()) {
	go func() {
		_, err := p.f.Read(make([]byte, 1)) // it never says anything
		p.mu.Lock()
		gone := p.gone
		p.mu.Unlock()
		if err != nil && !gone {
			do()
		}
	}()
}
