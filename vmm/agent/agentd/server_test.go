//go:build linux

package agentd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

// host is a System that waits for each process by itself.
type host struct{ down chan struct{} }

func (h host) Start(s Spec) (int, <-chan syscall.WaitStatus, error) {
	pid, err := s.Start()
	ended := make(chan syscall.WaitStatus, 1)
	if err == nil {
		go func() {
			var ws syscall.WaitStatus
			for {
				if _, err := syscall.Wait4(pid, &ws, 0, nil); err != syscall.EINTR {
					break
				}
			}
			ended <- ws
		}()
	}
	return pid, ended, err
}

func (host) Kill(group int, sig syscall.Signal) error { return syscall.Kill(-group, sig) }
func (host) Info() agent.Started {
	return agent.Started{PID: os.Getpid(), System: "Linux", Hostname: "here"}
}
func (h host) Shutdown() { close(h.down) }

// rig is a server and the way to it.
type rig struct {
	t    testing.TB
	key  agent.Key
	addr string
	down chan struct{}
}

func serve(t testing.TB) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, key: agent.NewKey(), addr: l.Addr().String(), down: make(chan struct{})}
	s := &Server{
		Key: r.key, System: host{r.down}, Cwd: "/tmp",
		Env: []string{"PATH=/usr/bin:/bin", "HOME=/", "BASE=yes"},
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("a call does not end")
		}
	})
	return r
}

// dial gives a stream that has been greeted.
func (r *rig) dial() net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := agent.Greet(c, r.key); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// result is how a command ended.
type result struct {
	out, err string
	status   agent.Status
	fail     error
}

func (r *rig) exec(c agent.Command) (res result) {
	r.t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	p, err := agent.Start(context.Background(), r.dial(), c)
	if err == nil {
		res.status, err = p.Wait()
	}
	res.out, res.err, res.fail = out.String(), errs.String(), err
	return res
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestExec(t *testing.T) {
	r := serve(t)
	big := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	for name, c := range map[string]struct {
		cmd  agent.Command
		want result
	}{
		"streams and status":  {agent.Command{Argv: sh("echo out; echo err >&2; exit 7")}, result{out: "out\n", err: "err\n", status: agent.Status{Code: 7}}},
		"standard input":      {agent.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(big)}, result{out: string(big)}},
		"no standard input":   {agent.Command{Argv: []string{"cat"}}, result{}},
		"input not wanted":    {agent.Command{Argv: []string{"true"}, Stdin: bytes.NewReader(big)}, result{}},
		"input closed":        {agent.Command{Argv: sh("exec <&-; sleep 0.1; echo done"), Stdin: bytes.NewReader(big)}, result{out: "done\n"}},
		"environment":         {agent.Command{Argv: sh("echo $BASE $A $HOME"), Env: []string{"A=b c", "HOME=/root"}}, result{out: "yes b c /root\n"}},
		"directory":           {agent.Command{Argv: []string{"pwd"}, Cwd: "/usr"}, result{out: "/usr\n"}},
		"default directory":   {agent.Command{Argv: []string{"pwd"}}, result{out: "/tmp\n"}},
		"a signal":            {agent.Command{Argv: sh("kill -KILL $$")}, result{status: agent.Status{Code: 137, Signal: "SIGKILL"}}},
		"a path":              {agent.Command{Argv: []string{"/bin/echo", "x"}}, result{out: "x\n"}},
		"a straggler":         {agent.Command{Argv: sh("sleep 60 & echo $! >&2; echo begun")}, result{out: "begun\n", err: "*"}},
		"a terminal":          {agent.Command{Argv: sh("stty size; test -t 0 -a -t 1 -a -t 2 && echo tty $TERM"), TTY: &agent.Size{Rows: 33, Cols: 99}}, result{out: "33 99\r\ntty vt220\r\n"}},
		"a terminal's end":    {agent.Command{Argv: []string{"cat"}, Stdin: strings.NewReader("a\n"), TTY: &agent.Size{}}, result{out: "a\r\na\r\n"}},
		"an interrupt typed":  {agent.Command{Argv: sh("trap 'echo int; exit 3' INT; echo go; while :; do sleep 0.05; done"), Stdin: &typist{"\x03"}, TTY: &agent.Size{}}, result{out: "*", status: agent.Status{Code: 3}}},
		"user by number":      {agent.Command{Argv: sh("id -u; id -g"), User: "65534:12"}, result{out: "65534\n12\n"}},
		"user by name":        {agent.Command{Argv: sh("id -un; echo $HOME"), User: "daemon"}, result{out: "daemon\n/usr/sbin\n"}},
		"an argument with NL": {agent.Command{Argv: []string{"printf", "%s", "a\nb"}}, result{out: "a\nb"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.cmd.User != "" && os.Getuid() != 0 {
				t.Skip("NOT RUN: only root becomes another user")
			}
			got := r.exec(c.cmd)
			if got.fail != nil || got.status != c.want.status || c.want.out != "*" && got.out != c.want.out || c.want.err != "*" && got.err != c.want.err {
				t.Errorf("%v %+v, out %d bytes %.80q, err %.80q", got.fail, got.status, len(got.out), got.out, got.err)
			}
			if name == "a straggler" {
				var pid int
				if _, err := fmt.Sscan(got.err, &pid); err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
					t.Errorf("the straggler did not live on: %v", err)
				}
			}
		})
	}
}

// typist types when something has been heard, and then nothing more for a while.
type typist struct{ keys string }

func (y *typist) Read(p []byte) (int, error) {
	if y.keys == "" {
		select {} // a keyboard that nobody touches
	}
	// The trap has to be set before the key; a shell says nothing of that
	// but by its output, which this does not see.
	time.Sleep(300 * time.Millisecond)
	n := copy(p, y.keys)
	y.keys = y.keys[n:]
	return n, nil
}

func TestExecFails(t *testing.T) {
	r := serve(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cmd  agent.Command
		want string
	}{
		"nothing":         {agent.Command{}, "no command"},
		"no such command": {agent.Command{Argv: []string{"nosuch"}}, "nosuch: no such command"},
		"no such path":    {agent.Command{Argv: []string{"/no/such"}}, "/no/such: no such command"},
		"not a program":   {agent.Command{Argv: []string{file}}, "not a program"},
		"no such folder":  {agent.Command{Argv: []string{"pwd"}, Cwd: "/no/such"}, "/no/such: no such directory"},
		"no such user":    {agent.Command{Argv: []string{"id"}, User: "nosuchuser"}, "no user nosuchuser"},
		"no such group":   {agent.Command{Argv: []string{"id"}, User: "0:nosuchgroup"}, "no group nosuchgroup"},
		"too long":        {agent.Command{Argv: []string{"echo", strings.Repeat("x", agent.MaxPayload)}}, "more than one message"},
	} {
		if got := r.exec(c.cmd); got.fail == nil || !strings.Contains(got.fail.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, got.fail, c.want)
		}
	}
}

// TestSignals: signals reach the command while it reads none of its input, and a
// new size reaches its terminal.
func TestSignals(t *testing.T) {
	r := serve(t)
	const loop = "echo ready; while :; do sleep 0.05; done"
	for name, c := range map[string]agent.Command{
		"pipes":    {Argv: sh("trap 'echo usr; exit 9' USR1; " + loop), Stdin: zeros{}},
		"terminal": {Argv: sh("trap 'stty size; echo winch' WINCH; trap 'echo usr; exit 9' USR1; " + loop), TTY: &agent.Size{Rows: 1, Cols: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			out, w := io.Pipe()
			c.Stdout = w
			if c.TTY != nil {
				quiet, typing := io.Pipe()
				defer typing.Close()
				c.Stdin = quiet
			}
			p, err := agent.Start(t.Context(), r.dial(), c)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			wait := func(s string) {
				t.Helper()
				for lines.Scan() {
					if strings.Contains(lines.Text(), s) {
						return
					}
				}
				t.Fatalf("no %q: %v", s, lines.Err())
			}
			wait("ready")
			if c.TTY != nil {
				if err := p.Resize(agent.Size{Rows: 50, Cols: 132}); err != nil {
					t.Fatal(err)
				}
				wait("50 132")
				wait("winch")
			}
			if err := p.Signal("SIGUSR1"); err != nil {
				t.Fatal(err)
			}
			wait("usr")
			go io.Copy(io.Discard, out)
			if st, err := p.Wait(); err != nil || st.Code != 9 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// zeros is input without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHangUp: who leaves takes the command along, a stubborn one too.
// TestInputBehind: what a caller says behind a command's end resets nothing, as a reset
// may overtake the status.
func TestInputBehind(t *testing.T) {
	r := serve(t)
	for range 30 {
		stream := r.dial()
		c := agent.NewConn(stream)
		if err := c.SendJSON(agent.TypeRequest, agent.Request{Op: agent.OpExec, Argv: sh("exit 7")}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []agent.Type{agent.TypeStarted, agent.TypeExit} {
			if got, b, err := c.Receive(); err != nil || got != want {
				t.Fatalf("message %d %q, %v", got, b, err)
			}
		}
		for range 3 {
			if err := c.Send(agent.TypeStdin, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		for err == nil {
			_, _, err = c.Receive() // credit, if anything
		}
		if err != io.EOF {
			t.Fatal(err)
		}
		stream.Close()
	}
}

func TestHangUp(t *testing.T) {
	r := serve(t)
	for _, script := range []string{"echo $$; exec sleep 1000", "trap '' HUP; echo $$; while :; do sleep 1; done"} {
		ctx, cancel := context.WithCancel(t.Context())
		out, w := io.Pipe()
		p, err := agent.Start(ctx, r.dial(), agent.Command{Argv: sh(script), Stdout: w})
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscanln(out, &pid); err != nil || pid != p.PID() {
			t.Fatalf("process %d, %d, %v", pid, p.PID(), err)
		}
		cancel()
		if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%q runs on", script)
			}
		}
	}
}

func TestCopies(t *testing.T) {
	r := serve(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(data)
	if err := os.WriteFile(filepath.Join(src, "sub/data"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	if skipped, err := agent.Store(t.Context(), r.dial(), src, false, filepath.Join(dir, "there")); err != nil || len(skipped) > 0 {
		t.Fatal(skipped, err)
	}
	if n, err := agent.Fetch(t.Context(), r.dial(), filepath.Join(dir, "there"), false, agent.Place{Dir: dir, Name: "back"}); err != nil || n != int64(len(data)) {
		t.Fatal(n, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "back/sub/data")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for name, f := range map[string]func() error{
		"no such file": func() error {
			_, err := agent.Fetch(t.Context(), r.dial(), "/no/such", false, agent.Place{Dir: dir})
			return err
		},
		"a device": func() error {
			_, err := agent.Fetch(t.Context(), r.dial(), "/dev/null", false, agent.Place{Dir: dir})
			return err
		},
		"no such folder": func() error { _, err := agent.Store(t.Context(), r.dial(), src, false, "/no/such/folder/"); return err },
		"a file in the way": func() error {
			_, err := agent.Store(t.Context(), r.dial(), src, false, "/etc/hostname")
			return err
		},
	} {
		var remote *agent.RemoteError
		if err := f(); !errors.As(err, &remote) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInfoAndShutdown(t *testing.T) {
	r := serve(t)
	s, err := agent.Ask(t.Context(), r.dial(), agent.OpInfo)
	if err != nil || s.PID != os.Getpid() || s.System != "Linux" || s.Hostname != "here" {
		t.Errorf("%+v, %v", s, err)
	}
	select {
	case <-r.down:
		t.Fatal("info has ended the machine")
	default:
	}
	if _, err := agent.Ask(t.Context(), r.dial(), agent.OpShutdown); err != nil {
		t.Error(err)
	}
	<-r.down
	if _, err := agent.Ask(t.Context(), r.dial(), "dance"); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("%v", err)
	}
}

// TestStrangers: callers without the key, and those that say nothing, get and
// cost nothing.
func TestStrangers(t *testing.T) {
	r := serve(t)
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := agent.Greet(c, agent.NewKey()); !errors.Is(err, agent.ErrKey) {
		t.Errorf("%v", err)
	}
	// More silent callers than there are slots: the next is turned away, and
	// as soon as they are gone there is room again.
	var silent []net.Conn
	for range maxCalls + 10 {
		s, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, s)
	}
	for _, s := range silent {
		s.Close()
	}
	var last error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		last = agent.Greet(c, r.key)
		c.Close()
		if last == nil {
			return
		}
	}
	t.Errorf("no room: %v", last)
}

// poorListener fails as accept(2) does when the guest's files are used up.
type poorListener struct {
	net.Listener
	errs []error
}

func (p *poorListener) Accept() (net.Conn, error) {
	if len(p.errs) > 0 {
		err := p.errs[0]
		p.errs = p.errs[1:]
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept", err)}
	}
	return p.Listener.Accept()
}

// TestAcceptFails: a guest that is out of files for a while keeps its agent.
func TestAcceptFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key := agent.NewKey()
	s := &Server{Key: key, System: host{}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(&poorListener{l, []error{syscall.EMFILE, syscall.ENFILE}}) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := agent.Greet(c, key); err != nil {
		t.Error(err)
	}
	c.Close()
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := s.Serve(&poorListener{l, []error{syscall.EBADF}}); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a socket that is none: %v", err)
	}
}

func TestMany(t *testing.T) {
	r := serve(t)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			got := r.exec(agent.Command{Argv: sh("cat; exit 4"), Stdin: strings.NewReader(fmt.Sprint(i))})
			if got.fail != nil || got.out != fmt.Sprint(i) || got.status.Code != 4 {
				t.Errorf("%d: %+v", i, got)
			}
		})
	}
	all.Wait()
}

// FuzzCall: what a caller that has the key sends cannot break the server.
func FuzzCall(f *testing.F) {
	seed := func(frames func(c *agent.Conn)) {
		var b bytes.Buffer
		frames(agent.NewConn(&b))
		f.Add(b.Bytes())
	}
	seed(func(c *agent.Conn) {
		_ = c.SendJSON(agent.TypeRequest, agent.Request{Op: agent.OpExec, Argv: []string{"cat"}})
		_ = c.Send(agent.TypeStdin, []byte("in"))
		_ = c.Send(agent.TypeSignal, []byte("SIGTERM"))
		_ = c.Send(agent.TypeStdin)
	})
	seed(func(c *agent.Conn) { _ = c.SendJSON(agent.TypeRequest, agent.Request{Op: agent.OpInfo}) })
	f.Fuzz(func(t *testing.T, in []byte) {
		h, g := net.Pipe()
		s := &Server{System: canned{}, Env: []string{"PATH=/bin"}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn := agent.NewConn(g)
			if r, err := conn.ReceiveRequest(); err == nil && (r.Op == agent.OpExec || r.Op == agent.OpInfo) {
				_ = s.request(g, conn, r)
			}
			g.Close()
		}()
		go io.Copy(io.Discard, h)
		_, _ = h.Write(in)
		h.Close()
		<-done
	})
}

// canned is a System whose processes end at once, whatever they are.
type canned struct{}

func (canned) Start(Spec) (int, <-chan syscall.WaitStatus, error) {
	c := make(chan syscall.WaitStatus, 1)
	c <- 0
	return 1 << 30, c, nil
}
func (canned) Kill(int, syscall.Signal) error { return nil }
func (canned) Info() agent.Started            { return agent.Started{} }
func (canned) Shutdown()                      {}

func BenchmarkExec(b *testing.B) {
	r := serve(b)
	for b.Loop() {
		if got := r.exec(agent.Command{Argv: []string{"/bin/true"}}); got.fail != nil {
			b.Fatal(got.fail)
		}
	}
}

// BenchmarkCall is all of a call but the process.
func BenchmarkCall(b *testing.B) {
	r := serve(b)
	for b.Loop() {
		c := r.dial()
		if _, err := agent.Ask(context.Background(), c, agent.OpInfo); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
