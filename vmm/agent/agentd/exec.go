//go:build linux || netbsd

package agentd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

const (
	// hangTime is how long a command whose caller is gone has between SIGHUP
	// and SIGKILL.
	hangTime = 2 * time.Second
	// stragglers is how long output is waited for when the command has ended but
	// something it left in the background still has its output open.
	stragglers = 100 * time.Millisecond
	// maxLeft is how many bytes are looked for in a pipe when that time is over: what
	// a command had written before its end fits, which is 64 KiB unless it had the pipe
	// made larger, and what is written on and on has an end.
	maxLeft = 1 << 20
	// endOfTransmission is what a terminal takes for the end of input (VEOF).
	endOfTransmission = 4
)

// Spec is a process to start.
type Spec struct {
	Path       string
	Argv, Env  []string
	Dir        string
	Files      [3]*os.File // standard input, output and error
	TTY        bool        // Files[0] becomes the controlling terminal
	Credential *syscall.Credential
}

// Start starts it with the Go runtime's own fork and exec.
func (s Spec) Start() (pid int, err error) {
	attr := &syscall.ProcAttr{Dir: s.Dir, Env: s.Env, Sys: &syscall.SysProcAttr{Credential: s.Credential}}
	for _, f := range s.Files {
		attr.Files = append(attr.Files, f.Fd())
	}
	if s.TTY {
		attr.Sys.Setsid, attr.Sys.Setctty, attr.Sys.Ctty = true, true, 0
	} else {
		attr.Sys.Setpgid = true
	}
	pid, err = syscall.ForkExec(s.Path, s.Argv, attr)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		// It is the directory that is missing, or the program, or its interpreter.
		if _, derr := os.Stat(s.Dir); derr != nil {
			return pid, fmt.Errorf("%s: no such directory", s.Dir)
		}
		err = fmt.Errorf("%s: %w", s.Path, agent.ErrNotFound)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		err = fmt.Errorf("%s: %w", s.Path, agent.ErrNotExec)
	default:
		err = fmt.Errorf("%s: %w", s.Path, err)
	}
	return pid, err
}

// exec runs a command for a caller. Its errors are those of before the start.
func (s *Server) exec(c net.Conn, conn *agent.Conn, r agent.Request) error {
	spec, err := s.spec(r)
	if err != nil {
		return err
	}
	p, err := pipes(r.TTY)
	if err != nil {
		return err
	}
	spec.Files, spec.TTY = p.child, r.TTY != nil
	pid, ended, err := s.System.Start(spec)
	for _, f := range p.child {
		f.Close() // the same file thrice with a terminal: the later calls do nothing
	}
	if err != nil {
		p.close()
		return err
	}
	x := &execution{server: s, conn: conn, pipes: p, pid: pid}
	return x.run(c, ended)
}

// spec is the process that a request asks for.
func (s *Server) spec(r agent.Request) (Spec, error) {
	if len(r.Argv) == 0 || r.Argv[0] == "" {
		return Spec{}, errors.New("no command given")
	}
	spec := Spec{Argv: r.Argv, Dir: r.Cwd, Env: merge(s.Env, r.Env)}
	home := "/"
	if r.User != "" {
		cred, h, err := credential(r.User)
		if err != nil {
			return Spec{}, err
		}
		spec.Credential, home = cred, h
		spec.Env = merge(spec.Env, []string{"HOME=" + home})
		spec.Env = merge(spec.Env, r.Env)
	}
	if r.TTY != nil {
		spec.Env = merge([]string{"TERM=vt220"}, spec.Env)
	}
	if spec.Dir == "" {
		spec.Dir = s.Cwd
	}
	if spec.Dir == "" {
		spec.Dir = "/"
	}
	var err error
	spec.Path, err = lookPath(r.Argv[0], spec.Dir, spec.Env)
	return spec, err
}

// merge puts variables over others.
func merge(env, over []string) []string {
	out := slices.Clone(env)
	for _, v := range over {
		name, _, ok := strings.Cut(v, "=")
		i := slices.IndexFunc(out, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		switch {
		case !ok || name == "":
		case i < 0:
			out = append(out, v)
		default:
			out[i] = v
		}
	}
	return out
}

// lookPath finds a command as execvp(3) does, relative to the directory that it
// will run in.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/bin:/bin:/usr/sbin:/sbin:/usr/pkg/bin:/usr/local/bin"
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	denied := false
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		file := filepath.Join(d, name)
		st, err := os.Stat(file)
		switch {
		case err != nil || st.IsDir():
		case st.Mode()&0o111 == 0:
			denied = true
		default:
			return file, nil
		}
	}
	if denied {
		return "", fmt.Errorf("%s: %w", name, agent.ErrNotExec)
	}
	return "", fmt.Errorf("%s: %w", name, agent.ErrNotFound)
}

// credential finds "user[:group]", names or numbers, in the guest's own files.
func credential(who string) (*syscall.Credential, string, error) {
	name, group, grouped := strings.Cut(who, ":")
	cred, home := &syscall.Credential{}, "/"
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	id := func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		return uint32(n), err
	}
	if err == nil {
		home = u.HomeDir
		uid, uerr := id(u.Uid)
		gid, gerr := id(u.Gid)
		if uerr != nil || gerr != nil {
			return nil, "", fmt.Errorf("user %s has odd numbers %s and %s", name, u.Uid, u.Gid)
		}
		cred.Uid, cred.Gid = uid, gid
		if !grouped {
			ids, _ := u.GroupIds() // without a group file there are none
			for _, s := range ids {
				if g, err := id(s); err == nil {
					cred.Groups = append(cred.Groups, g)
				}
			}
		}
	} else if cred.Uid, err = id(name); err != nil {
		return nil, "", fmt.Errorf("there is no user %s", name)
	} else {
		cred.Gid = cred.Uid
	}
	if grouped {
		g, err := user.LookupGroup(group)
		if err == nil {
			group = g.Gid
		}
		if cred.Gid, err = id(group); err != nil {
			return nil, "", fmt.Errorf("there is no group %s", group)
		}
	}
	return cred, home, nil
}

// ends are a command's standard files: the child's, and ours.
type ends struct {
	child       [3]*os.File
	in          *os.File // to its input
	out, errOut *os.File // from its outputs; errOut is nil with a terminal
	tty         bool
}

// pipes makes three pipes, or a terminal.
func pipes(size *agent.Size) (e ends, err error) {
	if size != nil {
		master, slave, err := openTerminal(*size)
		if err != nil {
			return e, fmt.Errorf("a terminal: %w", err)
		}
		return ends{child: [3]*os.File{slave, slave, slave}, in: master, out: master, tty: true}, nil
	}
	defer func() {
		if err != nil {
			e.close()
			for _, f := range e.child {
				f.Close()
			}
		}
	}()
	if e.child[0], e.in, err = os.Pipe(); err != nil {
		return e, err
	}
	if e.out, e.child[1], err = os.Pipe(); err != nil {
		return e, err
	}
	e.errOut, e.child[2], err = os.Pipe()
	return e, err
}

// close closes our ends; those that are not there are no matter.
func (e ends) close() {
	for _, f := range []*os.File{e.in, e.out, e.errOut} {
		f.Close()
	}
}

// execution is a command that runs for a caller.
type execution struct {
	server *Server
	conn   *agent.Conn
	pipes  ends
	pid    int

	mu      sync.Mutex
	changed sync.Cond
	pending int    // bytes of input that have come and are not written
	input   []byte // those that nobody is writing yet
	last    bool   // no more will come
	eof     bool   // because the caller has said so
	over    bool   // the command is: its process number may be another's
}

// run serves a command until it has ended and its output is out.
func (x *execution) run(c net.Conn, ended <-chan syscall.WaitStatus) error {
	if err := x.conn.SendJSON(agent.TypeStarted, agent.Started{PID: x.pid}); err != nil {
		x.hangUp()
		<-ended
		x.pipes.close()
		return nil
	}
	var outputs sync.WaitGroup
	outputs.Go(func() { x.output(agent.TypeStdout, x.pipes.out) })
	if x.pipes.errOut != nil {
		outputs.Go(func() { x.output(agent.TypeStderr, x.pipes.errOut) })
	}
	x.changed.L = &x.mu
	var inputs sync.WaitGroup
	inputs.Go(x.write)
	gone := make(chan struct{}) // the caller is
	go x.listen(gone)

	var status syscall.WaitStatus
	select {
	case status = <-ended:
	case <-gone:
		kill := time.AfterFunc(hangTime, func() { _ = x.server.System.Kill(x.pid, syscall.SIGKILL) })
		x.hangUp()
		status = <-ended
		kill.Stop()
	}
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
	// What is in the pipes still comes; what a process in the background would
	// write later does not hold the caller up.
	until := time.Now().Add(stragglers)
	_ = x.pipes.out.SetReadDeadline(until)
	if x.pipes.errOut != nil {
		_ = x.pipes.errOut.SetReadDeadline(until)
	}
	outputs.Wait()
	st := agent.Status{Code: status.ExitStatus()}
	if status.Signaled() {
		st = agent.Status{Code: 128 + int(status.Signal()), Signal: unix.SignalName(status.Signal())}
	}
	_ = x.conn.SendJSON(agent.TypeExit, st)
	x.pipes.close() // ends a write that is stuck
	parting(c)      // the caller's end, or that it takes too long, ends listening
	<-gone
	inputs.Wait()
	return nil
}

func (x *execution) hangUp() { _ = x.server.System.Kill(x.pid, syscall.SIGHUP) }

// output sends what the command writes.
func (x *execution) output(t agent.Type, from *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && x.conn.Send(t, buf[:n]) != nil {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The caller may have been slow: what was written in time is there still.
			x.left(t, from, buf)
		}
		if err != nil {
			return
		}
	}
}

// left sends what is in a pipe, without waiting for more.
func (x *execution) left(t agent.Type, from *os.File, buf []byte) {
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	for have := 0; have < maxLeft; {
		n := 0
		// Control, as Read looks at the deadline; our end does not block.
		if err := raw.Control(func(fd uintptr) {
			for again := true; again; {
				var e error
				n, e = unix.Read(int(fd), buf)
				again = e == unix.EINTR
			}
		}); err != nil || n <= 0 || x.conn.Send(t, buf[:n]) != nil {
			return
		}
		have += n
	}
}

// listen takes what the caller sends, and always reads on.
func (x *execution) listen(gone chan<- struct{}) {
	defer close(gone)
	defer x.noMore(false)
	for {
		t, b, err := x.conn.Receive()
		if err != nil {
			return
		}
		switch t {
		case agent.TypeStdin:
			if len(b) == 0 {
				x.noMore(true)
			} else if !x.admit(b) {
				return // it does not keep to its credit
			}
		case agent.TypeSignal:
			if sig := unix.SignalNum(string(b)); sig != 0 {
				x.signal(sig)
			}
		case agent.TypeResize:
			if size, err := agent.DecodeSize(b); err == nil && x.pipes.tty {
				_ = setSize(x.pipes.in, size)
			}
		default:
			return
		}
	}
}

// signal passes a signal on for as long as there is whom to give it.
func (x *execution) signal(sig syscall.Signal) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.over {
		_ = x.server.System.Kill(x.pid, sig)
	}
}

// admit takes input that has come; the window bounds it.
func (x *execution) admit(b []byte) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.last || x.pending+len(b) > agent.Window {
		return false
	}
	x.pending += len(b)
	x.input = append(x.input, b...)
	x.changed.Signal()
	return true
}

// noMore ends the input: eof if the command is to see its end.
func (x *execution) noMore(eof bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last, x.eof = true, x.eof || eof
	x.changed.Signal()
}

// write gives what has come to the command, and the caller credit for as much
// again. A command that has closed its input, or ended, gets the rest thrown away.
func (x *execution) write() {
	var b []byte
	for broken := false; ; {
		x.mu.Lock()
		for len(x.input) == 0 && !x.last {
			x.changed.Wait()
		}
		b, x.input = x.input, b[:0]
		eof := x.eof
		x.mu.Unlock()
		if len(b) == 0 {
			switch {
			case !eof:
			case x.pipes.tty:
				_, _ = x.pipes.in.Write([]byte{endOfTransmission})
			default:
				x.pipes.in.Close()
			}
			return
		}
		if !broken {
			_, err := x.pipes.in.Write(b)
			broken = err != nil
		}
		x.mu.Lock()
		x.pending -= len(b)
		x.mu.Unlock()
		_ = x.conn.Send(agent.TypeCredit, binary.LittleEndian.AppendUint32(nil, uint32(len(b))))
	}
}
