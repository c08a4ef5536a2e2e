package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// noMachine is a Host without a machine.
type noMachine struct{ api.Host }

func (noMachine) Ports() []client.Port { return nil }

// here is this system as a guest of the agent's.
type here struct{}

func (here) Start(s agentd.Spec) (int, <-chan syscall.WaitStatus, error) {
	pid, err := s.Start()
	ended := make(chan syscall.WaitStatus, 1)
	if err == nil {
		go func() {
			var ws syscall.WaitStatus
			for {
				if _, err := syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, syscall.EINTR) {
					break
				}
			}
			ended <- ws
		}()
	}
	return pid, ended, err
}

func (here) Kill(group int, sig syscall.Signal) error { return syscall.Kill(-group, sig) }
func (here) Info() agent.Started                      { return agent.Started{PID: os.Getpid()} }
func (here) Shutdown()                                {}

// withAgent makes a machine of the yard's that is this system: it has a name, a socket
// and the agent, and needs no KVM.
func withAgent(t *testing.T, y *yard, name string) {
	t.Helper()
	key := agent.NewKey()
	l, err := net.Listen("unix", filepath.Join(y.dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	go (&agentd.Server{Key: key, System: here{}, Env: []string{"PATH=/usr/bin:/bin", "OWN=1"}, Cwd: "/"}).Serve(l)
	t.Cleanup(func() { l.Close() })
	store, err := machines.Open(y.env)
	if err != nil {
		t.Fatal(err)
	}
	claim, err := store.Create(machines.Spec{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(claim.Release)
	g := &guestAgent{key: key, ways: []way{func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}}
	s, err := api.New(api.Config{Host: noMachine{}, ID: name, Booted: true, Agent: g})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ul, err := cli.ListenUnix(claim.Spec.Socket)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(ul)
	s.Started()
	if err := claim.Note(machines.Record{State: machines.Running}); err != nil {
		t.Fatal(err)
	}
}

// TestExec: commands, their streams, environment and status, by the program's own
// exec, with this system for a guest.
func TestExec(t *testing.T) {
	t.Parallel()
	y := bareYard(t)
	withAgent(t, y, "here")
	for _, c := range []struct {
		in        string
		args      []string
		out, errs string
		status    int
	}{
		{"", []string{"here", "sh", "-c", "echo out; echo err >&2; exit 7"}, "out\n", "err\n", 7},
		{"words", []string{"-i", "here", "cat"}, "words", "", 0},
		{"words", []string{"here", "cat"}, "", "", 0},
		{"", []string{"-e", "A=b", "-e", "TOKEN", "-e", "OWN=2", "-w", "/tmp", "here", "sh", "-c", "echo $A $TOKEN $OWN; pwd"}, "b from outside 2\n/tmp\n", "", 0},
		{"", []string{"-e", "NOTSET", "here", "true"}, "", "smolvmm: -env NOTSET: not set in the environment; give -env NOTSET=VALUE\n", 2},
		{"", []string{"-e", "=x", "here", "true"}, "", "smolvmm: -env: a variable needs a name: -env NAME=VALUE\n", 2},
		{"", []string{"here", "no-such-command"}, "", "smolvmm: machine here: no-such-command: no such command\n", 127},
		{"", []string{"here", "/"}, "", "smolvmm: machine here: /: not a program that can be run\n", 126},
		{"", []string{"here", "sh", "-c", "kill -9 $$"}, "", "", 137},
		{"", []string{"-t", "here", "true"}, "", "smolvmm: -t: standard input is no terminal\n", 2},
		{"", []string{"nobody", "true"}, "", "smolvmm: no such machine: nobody\n", 2},
	} {
		cmd := y.cmd(append([]string{"exec"}, c.args...)...)
		cmd.Stdin = strings.NewReader(c.in)
		cmd.Env = append(cmd.Env, "TOKEN=from outside")
		r := clitest.Finish(t, cmd)
		if r.Out != c.out || r.Err != c.errs || r.Status != c.status {
			t.Errorf("%q: %+v", c.args, r)
		}
	}
}

// TestExecTerminal: a command on a terminal, of the size of this one, and a shell that
// is left by its keys while it hangs.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	y := bareYard(t)
	withAgent(t, y, "here")
	for _, c := range []struct {
		args   []string
		wait   string
		type_  string
		shows  string
		status int
	}{
		{[]string{"exec", "-it", "here", "sh", "-c", "stty size; read a; echo got $a; exit 3"}, "24 80|0 0|[0-9]+ [0-9]+", "~~x\r", "got ~x", 3},
		{[]string{"exec", "-it", "here", "sh", "-c", "trap '' INT; echo waits; sleep 1000"}, "waits", "\x03\r~.", "given up on: ~. was typed", cli.StatusQuit},
		{[]string{"shell", "here"}, `[#$] `, "echo a$((1+1))b; exit 4\r", "a2b", 4},
	} {
		master, slave := clitest.OpenPTY(t)
		cmd := y.cmd(c.args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		slave.Close()
		screen := clitest.NewTranscript()
		screen.From(master)
		screen.Wait(t, c.wait)
		if _, err := io.WriteString(master, c.type_); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		screen.Wait(t, regexp.QuoteMeta(c.shows)) // which the terminal may hold yet
		if got := clitest.StatusOfProcess(cmd.ProcessState); got != c.status {
			t.Errorf("%q: status %d\n%s", c.args, got, screen)
		}
		master.Close()
	}
}

// TestLeaver: what is typed comes through, but for the keys that leave, however it is
// cut into pieces.
func TestLeaver(t *testing.T) {
	for _, c := range []struct {
		typed, want string
		left        bool
	}{
		{"ls\r", "ls\r", false},
		{"~.", "", true},
		{"ls\r~.more", "ls\r", true},
		{"ls\n~.", "ls\n", true},
		{"a~.b", "a~.b", false},
		{"~~.", "~.", false},
		{"~~\r~.", "~\r", true},
		{"~x~.", "~x~.", false},
		{"~\r~.", "~\r", true},
		{"ls ~\r", "ls ~\r", false},
		{"~", "~", false},
		{"", "", false},
		{strings.Repeat("x", 10000) + "\r~.", strings.Repeat("x", 10000) + "\r", true},
	} {
		for name, in := range map[string]io.Reader{
			"whole": strings.NewReader(c.typed), "a byte": iotest.OneByteReader(strings.NewReader(c.typed)), "with the end": iotest.DataErrReader(strings.NewReader(c.typed)),
		} {
			left := 0
			got, err := io.ReadAll(iotest.OneByteReader(&leaver{in: in, leave: func() { left++ }}))
			if err != nil || string(got) != c.want || (left == 1) != c.left || left > 1 {
				t.Errorf("%.20q, %s: %.20q, left %d, %v", c.typed, name, got, left, err)
			}
		}
	}
}
