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
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

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

// slow takes its first bytes only when it is let go on.
type slow struct {
	bytes.Buffer
	wait func()
}

func (s *slow) Write(b []byte) (int, error) {
	if s.wait != nil {
		s.wait()
		s.wait = nil
	}
	return s.Buffer.Write(b)
}

// TestSlowCaller: what a command has written before its end reaches a caller who takes
// it long after, and something that goes on writing does not keep him.
func TestSlowCaller(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	want := make([]byte, 180_000) // a frame that he has, one on its way, and the rest in the pipe
	_, _ = rand.NewChaCha8([32]byte{3}).Read(want)
	if err := os.WriteFile(data, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		script string
		most   int
	}{
		"ended":     {"cat " + data, len(want)},
		"straggler": {"cat " + data + "; yes & echo $! >&2", len(want) + 4*maxLeft},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe() // which has no buffer
			s := &Server{System: host{}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}}
			served := make(chan struct{})
			go func() {
				defer close(served)
				conn := agent.NewConn(far)
				if r, err := conn.ReceiveRequest(); err == nil {
					_ = s.request(far, conn, r)
				}
				far.Close()
			}()
			var errs bytes.Buffer
			// The time that is waited is what this is about.
			out := &slow{wait: func() { time.Sleep(5 * stragglers) }}
			p, err := agent.Start(t.Context(), near, agent.Command{Argv: sh(c.script), Stdout: out, Stderr: &errs})
			if err != nil {
				t.Fatal(err)
			}
			if st, err := p.Wait(); err != nil || st.Code != 0 {
				t.Errorf("%+v, %v", st, err)
			}
			<-served
			if got := out.Bytes(); !bytes.HasPrefix(got, want) || len(got) > c.most {
				t.Errorf("%d bytes came of %d", len(got), len(want))
			}
			var pid int
			if _, err := fmt.Sscan(errs.String(), &pid); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	}
}

// TestHangUp: who leaves takes the command along, a stubborn one too.
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

func BenchmarkExec(b *testing.B) {
	r := serve(b)
	for b.Loop() {
		if got := r.exec(agent.Command{Argv: []string{"/bin/true"}}); got.fail != nil {
			b.Fatal(got.fail)
		}
	}
}
