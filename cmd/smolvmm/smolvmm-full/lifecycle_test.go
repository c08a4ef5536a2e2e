package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

// yard is a place for machines of a test's own: folders, a kernel, a disk.
type yard struct {
	testing.TB
	dir, kernel, disk string
}

func newYard(t testing.TB) *yard {
	t.Helper()
	clitest.NeedKVM(t)
	return bareYard(t)
}

// bareYard is one for tests that make no machine.
func bareYard(t testing.TB) *yard {
	t.Helper()
	dir := clitest.Folder(t)
	y := &yard{TB: t, dir: dir, kernel: clitest.DemoKernel(t, dir), disk: filepath.Join(dir, "disk.img")}
	if err := os.WriteFile(y.disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Whatever a test that failed has left runs no longer.
		if s, err := machines.Open(y.env); err == nil {
			ms, _ := s.List()
			for _, m := range ms {
				if m.Alive {
					_ = s.Signal(m, syscall.SIGKILL)
					_ = s.Wait(m.Spec.Name)
				}
			}
		}
		os.RemoveAll(dir)
	})
	return y
}

func (y *yard) env(k string) (string, bool) {
	switch k {
	case "XDG_DATA_HOME":
		return filepath.Join(y.dir, "data"), true
	case "XDG_RUNTIME_DIR":
		return filepath.Join(y.dir, "run"), true
	case "XDG_CONFIG_HOME":
		return filepath.Join(y.dir, "config"), true
	}
	return "", false
}

// cmd is a command of the program in the yard.
func (y *yard) cmd(args ...string) *exec.Cmd {
	y.Helper()
	c := clitest.Smolvmm(y, args...)
	for _, k := range []string{"XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		v, _ := y.env(k)
		c.Env = append(c.Env, k+"="+v)
	}
	return c
}

// do runs a command that must succeed, and gives what it prints.
func (y *yard) do(args ...string) string {
	y.Helper()
	r := clitest.Finish(y, y.cmd(args...))
	if r.Status != 0 {
		y.Fatalf("%q: status %d\n%s%s", args, r.Status, r.Out, r.Err)
	}
	return r.Out
}

// run starts a machine with the demo guest in a mode.
func (y *yard) run(mode string, args ...string) *exec.Cmd {
	y.Helper()
	return y.cmd(append(append([]string{"run"}, args...), "--kernel", y.kernel, "-a", "demo="+mode, "-m", "32M")...)
}

func (y *yard) ps(args ...string) (vs []machines.View) {
	y.Helper()
	out := y.do(append([]string{"ps", "--format", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &vs); err != nil {
		y.Fatalf("%v\n%s", err, out)
	}
	return vs
}

// empty: nothing of any machine is left.
func (y *yard) empty() {
	y.Helper()
	for _, d := range []string{"data/smolvmm/machines", "run/smolvmm/machines"} {
		es, err := os.ReadDir(filepath.Join(y.dir, d))
		if err != nil || len(es) > 0 {
			y.Errorf("%s: %v, %v", d, es, err)
		}
	}
}

// TestLifecycle: a machine in the background is started, listed, read, asked about,
// stopped and removed.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	c := y.run("count", "-d", "--name", "web", "--disk", y.disk, "-p", "0:80", "-e", "KEY=value", "--confine", "trap")
	r := clitest.Finish(t, c)
	if r.Status != 0 || r.Out != "web\n" || !strings.Contains(r.Err, "published: tcp") {
		t.Fatalf("%+v", r)
	}
	follow := y.cmd("logs", "-f", "web")
	pr, pw := clitest.Pipe(t)
	follow.Stdout, follow.Stderr = pw, pw
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	console := clitest.NewTranscript()
	console.From(pr)
	console.Wait(t, `demo: \w+`)

	vs := y.ps()
	if len(vs) != 1 || vs[0].Name != "web" || vs[0].State != machines.Running || !vs[0].Ready || vs[0].Memory != 32<<20 || len(vs[0].Ports) == 0 || vs[0].Used < 1<<20 {
		t.Errorf("%+v", vs)
	}
	clitest.MustContain(t, "ps", y.do("ps"), "web", "ready", "disk.img", "->80/tcp")
	if out := y.do("ps", "-q"); out != "web\n" {
		t.Errorf("ps -q: %q", out)
	}
	inspect := y.do("inspect", "web")
	clitest.MustContain(t, "inspect", inspect, `"KEY"`, `"cpus": 1`, `"ready": true`)
	if strings.Contains(inspect, "value") {
		t.Errorf("a variable's value is kept:\n%s", inspect)
	}
	clitest.MustContain(t, "stats", y.do("stats", "--no-stream"), "NAME", "web", "32M")
	// A second one of the name is refused, at once and clearly.
	if r := clitest.Finish(t, y.run("hello", "--name", "web")); r.Status != 2 || !strings.Contains(r.Err, "machine web is running") || strings.Count(r.Err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	if r := clitest.Finish(t, y.cmd("rm", "web")); r.Status != 2 || !strings.Contains(r.Err, "is running") {
		t.Errorf("%+v", r)
	}

	waiting := y.cmd("wait", "web")
	var status bytes.Buffer
	waiting.Stdout = &status
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	if out := y.do("stop", "web"); out != "web\n" {
		t.Errorf("stop: %q", out)
	}
	_ = waiting.Wait()
	if got := clitest.StatusOfProcess(waiting.ProcessState); status.String() != fmt.Sprintln(got) || got < 128 {
		t.Errorf("wait: %q, status %d", status.String(), got)
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("logs -f: %v", err)
	}
	if vs := y.ps("-a"); len(vs) != 1 || vs[0].State != machines.Ended || vs[0].Status == nil {
		t.Errorf("%+v", vs)
	}
	if vs := y.ps(); len(vs) != 0 {
		t.Errorf("%+v", vs)
	}
	if got, want := y.do("logs", "web"), console.String(); got != want {
		t.Errorf("logs: %d bytes, followed: %d", len(got), len(want))
	}
	if b, err := os.ReadFile(y.disk); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("the image was written to: %v", err)
	}
	y.do("rm", "web")
	y.empty()
	audit, err := os.ReadFile(filepath.Join(y.dir, "data/smolvmm/audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for line := range bytes.Lines(audit) {
		var e struct{ Event, Machine string }
		if err := json.Unmarshal(line, &e); err != nil || e.Machine != "web" {
			t.Errorf("%s: %v", line, err)
		}
		events = append(events, e.Event)
	}
	if got := strings.Join(events, " "); got != "machine-created machine-stop machine-ended machine-removed" {
		t.Errorf("the audit log: %s", got)
	}
}

// TestForeground: without -d the console and the exit status are here, and the
// machine is listed all the same.
func TestForeground(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	r := clitest.Finish(t, y.run("exit=7", "--name", "seven"))
	if r.Status != 7 || r.Err != "" {
		t.Errorf("%+v", r)
	}
	if vs := y.ps("-a"); len(vs) != 1 || vs[0].Status == nil || *vs[0].Status != 7 {
		t.Errorf("%+v", vs)
	}
	if r := clitest.Finish(t, y.cmd("wait", "seven")); r.Status != 7 || r.Out != "7\n" {
		t.Errorf("%+v", r)
	}
	if r := clitest.Finish(t, y.run("hello", "--name", "seven")); r.Status != 2 || !strings.Contains(r.Err, "smolvmm rm seven") {
		t.Errorf("%+v", r)
	}
	r = clitest.Finish(t, y.run("hello", "--rm"))
	clitest.MustContain(t, "the console", r.Out, "hello from the smolvmm test guest")
	if out := y.do("logs", "-n", "1", "seven"); strings.Count(out, "\n") > 1 {
		t.Errorf("%q", out)
	}
	y.do("cleanup", "--all")
	y.empty()
}

// TestReady: -d returns when the guest is ready, by each of the ways to say so,
// and tells when it is not.
func TestReady(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	for _, c := range []struct {
		mode, ready, why string
	}{
		{"spin", "start", "start"},
		{"netecho", "mark", "mark 3"},
		{"netecho", "mark:2", "mark 2"},
		{"echo", "console:^demo: .*echo", "console: "},
		{"nettcp=serve", "port:5001", "port 5001 answers"},
	} {
		name := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, c.ready[:min(len(c.ready), 6)]) + "x"
		if r := clitest.Finish(t, y.run(c.mode, "-d", "--rm", "--name", name, "--ready", c.ready, "--confine", "trap")); r.Status != 0 || r.Out != name+"\n" {
			t.Errorf("%s: %+v", c.ready, r)
			continue
		}
		b, err := os.ReadFile(filepath.Join(y.dir, "data/smolvmm/machines", name, "journal"))
		if err != nil || !strings.Contains(string(b), `"text":"`+c.why) {
			t.Errorf("%s: %v\n%s", c.ready, err, b)
		}
		y.do("kill", name)
	}
	for _, c := range []struct {
		mode   string
		args   []string
		status int
		err    string
	}{
		{"exit=3", []string{"--ready", "console:never"}, 3, ""},
		{"exit=0", []string{"--ready", "console:never"}, 1, "ended before it was ready"},
		{"triple", []string{"--ready", "console:never"}, 121, "triple fault"},
		{"hlt", []string{"--ready", "console:never", "--ready-timeout", "300ms"}, 124, "not ready in time: --ready console:never did not come in 300ms"},
		{"hlt", []string{"--ready", "agent", "--ready-timeout", "300ms"}, 124, "not ready in time: --ready agent did not come in 300ms"},
		{"exit=3", []string{"--ready", "agent"}, 3, ""},
		{"exit=3", []string{"--ready", "agent:1"}, 2, "-ready"},
		{"hlt", []string{"--disk", "/no/such"}, 2, "/no/such"},
		{"hlt", []string{"--ready", "console:("}, 2, "-ready"},
		{"hlt", []string{"--ready", "port:70000"}, 2, "-ready"},
		{"hlt", []string{"--nam", "x"}, 2, "did you mean -name?"},
	} {
		r := clitest.Finish(t, y.run(c.mode, append([]string{"-d", "--rm"}, c.args...)...))
		if r.Status != c.status || r.Out != "" || !strings.Contains(r.Err, c.err) || c.err == "" && r.Err != "" {
			t.Errorf("%s %q: %+v", c.mode, c.args, r)
		}
	}
	waitEmpty(y)
}

// waitEmpty waits for the keepers of machines with --rm.
func waitEmpty(y *yard) {
	y.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if len(y.ps("-a")) == 0 {
			break
		}
	}
	y.empty()
}

// TestAbandoned: while -d waits, the machine and who started it live and die
// together.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		y := newYard(t)
		c := y.run("spin", "-d", "--rm", "--name", "orphan", "--ready", "console:never")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for len(y.ps()) == 0 || y.ps()[0].State != machines.Running {
			time.Sleep(time.Millisecond)
		}
		_ = c.Process.Signal(sig)
		_ = c.Wait()
		waitEmpty(y)
	}
}

// TestKilled: a process that is killed, at any point, leaves a state that ps tells,
// that rm and cleanup remove, and a name that can be had again.
func TestKilled(t *testing.T) {
	t.Parallel()
	y := newYard(t)
	rounds := 30
	if testing.Short() {
		rounds = 6
	}
	rng := rand.New(rand.NewPCG(1, 2))
	seen := map[machines.State]int{}
	for i := range rounds {
		args := []string{"--name", "victim"}
		if i%3 == 0 {
			args = append(args, "--rm")
		}
		c := y.run("count", append(args, "--disk", y.disk)...)
		c.Stdout = io.Discard
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// From before the first file to well into the guest's run.
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		_ = c.Process.Kill()
		_ = c.Wait()
		// A keeper that was just being forked has the lock until it executes.
		for end := time.Now().Add(5 * time.Second); len(y.ps()) != 0; {
			if time.Now().After(end) {
				t.Fatalf("round %d: %+v", i, y.ps())
			}
		}
		for _, v := range y.ps("-a") {
			seen[v.State]++
			if v.State != machines.Dead {
				t.Errorf("round %d: %+v", i, v)
			}
		}
		switch i % 2 {
		case 0:
			y.do("cleanup")
		case 1:
			y.do("rm", "-f", "victim")
		}
		if vs := y.ps("-a"); len(vs) != 0 {
			t.Fatalf("round %d: after: %+v", i, vs)
		}
	}
	t.Logf("%d killed: %v", rounds, seen)
	if seen[machines.Dead] == 0 {
		t.Error("none was killed when it had files")
	}
	// What was killed before it had its name is not taken for somebody's at once.
	long := time.Now().Add(-time.Hour)
	dirs, _ := filepath.Glob(filepath.Join(y.dir, "data/smolvmm/machines/.new-*"))
	for _, d := range dirs {
		_ = os.Chtimes(d, long, long)
	}
	y.do("cleanup")
	y.empty()
}

// TestStuck: a process that does not react is killed in the end, and holds nobody up
// until then.
func TestStuck(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for some seconds")
	}
	y := newYard(t)
	for _, name := range []string{"stuck", "other"} {
		y.run("spin", "-d", "--name", name, "--ready", "start").Run()
	}
	var pid int
	for _, v := range y.ps() {
		if v.Name == "stuck" {
			pid = v.PID
		}
	}
	if pid == 0 {
		t.Fatalf("%+v", y.ps())
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	killing := y.cmd("kill", "stuck", "other", "stuck")
	var out, errs bytes.Buffer
	killing.Stdout, killing.Stderr = &out, &errs
	if err := killing.Start(); err != nil {
		t.Fatal(err)
	}
	clitest.Finish(t, y.cmd("wait", "other"))
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the other was ended when the stuck one had been: %v", err)
	}
	err := killing.Wait()
	if err != nil || out.String() != "stuck\nother\nstuck\n" || !strings.Contains(errs.String(), "it is killed") {
		t.Errorf("%v %q %q", err, &out, &errs)
		t.Log(y.do("ps", "-a"), y.do("inspect", "other"))
		t.Log(y.do("logs", "other"), y.do("logs", "--monitor", "other"))
	}
	y.do("rm", "other", "stuck")
	y.empty()
}
