package jail

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A jail cannot be taken off, so every test of one runs in a child: this test
// binary again, told by childEnv what to do.
const childEnv = "SMOLVMM_JAIL_TEST"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		name, arg, _ := strings.Cut(what, ":")
		f, ok := children[name]
		if !ok {
			fmt.Println("no child", name)
			os.Exit(3)
		}
		if err := f(arg); err != nil {
			fmt.Println("FAIL:", err)
			os.Exit(1)
		}
		fmt.Println("ok")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(t testing.TB, what string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	return cmd
}

// mustPass runs a child that has to end well, and gives what it printed.
func mustPass(t testing.TB, what string) string {
	t.Helper()
	out, err := child(t, what).CombinedOutput()
	if err != nil || !bytes.HasSuffix(out, []byte("ok\n")) {
		t.Fatalf("child %s: %v\n%s", what, err, out)
	}
	return string(out)
}

// everything is the widest jail: what it refuses, all refuse.
func everything() Config {
	return Config{Mode: Enforce, Groups: Strict(Machine{Console: ConsoleStdio, Disks: true, BlockDevices: true, API: true})}
}

func TestWorkUnderJail(t *testing.T) {
	for _, c := range []string{"none", "stdio", "full"} {
		t.Run(c, func(t *testing.T) { mustPass(t, "work:"+c) })
	}
}

func TestEveryThreadIsCovered(t *testing.T) {
	cmd := child(t, "idle")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil || string(ready) != "ready\n" {
		t.Fatalf("child said %q, %v", ready, err)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(files) < 2*idleThreads {
		t.Fatalf("%d threads, want at least %d: %v", len(files), 2*idleThreads, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"\nSeccomp:\t2\n", "\nSeccomp_filters:\t1\n", "\nNoNewPrivs:\t1\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q", f, want)
			}
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestRefusedOnEveryThread(t *testing.T) {
	t.Log(mustPass(t, "refused"))
}

func TestLandlockOnEveryThread(t *testing.T) {
	if abi := Probe().Landlock; abi == 0 || (withCgo && abi < 8) {
		t.Skipf("Landlock ABI %d, cgo %v: not applied here", abi, withCgo)
	}
	mustPass(t, "landlock")
}

func TestForbiddenKillsFromEveryThread(t *testing.T) {
	for name := range deadly {
		for _, where := range []string{"main", "early", "late"} {
			t.Run(name+"/"+where, func(t *testing.T) {
				t.Parallel()
				out, err := child(t, "deadly:"+name+"/"+where).CombinedOutput()
				var ee *exec.ExitError
				if !errors.As(err, &ee) {
					t.Fatalf("lived: %s", out)
				}
				ws := ee.Sys().(syscall.WaitStatus)
				if !ws.Signaled() || ws.Signal() != unix.SIGSYS {
					t.Fatalf("ended with %v, not by SIGSYS\n%s", ee, out)
				}
			})
		}
	}
}

func TestLogModeLetsThrough(t *testing.T) {
	if !Probe().Log {
		t.Skip("this kernel has no SECCOMP_RET_LOG")
	}
	mustPass(t, "log")
}

func TestTrapNamesTheCaller(t *testing.T) {
	out, err := child(t, "trap").CombinedOutput()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != 2 {
		t.Fatalf("ended with %v, not with status 2\n%s", err, out)
	}
	for _, want := range []string{"SIGSYS", "trapped("} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the stack does not say %q:\n%s", want, out)
		}
	}
}

func TestFirstTimerUnderJail(t *testing.T) { mustPass(t, "sleep") }

func TestOnlyOnce(t *testing.T) { mustPass(t, "twice") }

func TestConfigErrors(t *testing.T) {
	for _, c := range []Config{
		{Mode: 9},
		{Mode: -1},
		{Mode: Enforce, Groups: []Group{"kitchen"}},
		{Mode: Enforce, ExtraSyscalls: []uint32{x32Bit | unix.SYS_OPENAT}},
	} {
		if err := Apply(c); err == nil {
			t.Fatalf("%+v was taken", c) // and this process is now jailed
		}
	}
	if err := Apply(Config{}); err != nil {
		t.Errorf("off: %v", err)
	}
	if f, err := os.Open("/dev/null"); err != nil {
		t.Errorf("a refused configuration left something behind: %v", err)
	} else {
		f.Close()
	}
}

func TestParseMode(t *testing.T) {
	for m := Off; m <= Trap; m++ {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("on"); err == nil {
		t.Error(`"on" was taken`)
	}
	if s := Mode(7).String(); s != "mode 7" {
		t.Error(s)
	}
}

func TestStrict(t *testing.T) {
	for _, c := range []struct {
		m    Machine
		want []Group
	}{
		{Machine{}, []Group{Runtime, KVM}},
		{Machine{Console: ConsoleStdio, Disks: true}, []Group{Runtime, KVM, Terminal, Disk}},
		{Machine{Console: ConsolePty}, []Group{Runtime, KVM, Terminal}},
		{Machine{Log: true}, []Group{Runtime, KVM, LogFile}},
		{Machine{Console: ConsoleSocket, API: true}, []Group{Runtime, KVM, Listener, API}},
		{Machine{API: true, BlockDevices: true}, []Group{Runtime, KVM, Listener, API, Disk, BlockDev}},
		{Machine{Network: true}, []Group{Runtime, KVM, Network}},
		{Machine{Vsock: true, Network: true}, []Group{Runtime, KVM, Network, Vsock}},
	} {
		if got := Strict(c.m); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.m, got, c.want)
		}
	}
}

// BenchmarkApply gives the time of Apply in fresh processes with a dozen
// threads: the whole, as it stands on the way to a machine's start.
func BenchmarkApply(b *testing.B) {
	for _, mode := range []Mode{Enforce, Log} {
		b.Run(mode.String(), func(b *testing.B) {
			var took []int
			for b.Loop() {
				out := mustPass(b, "time:"+mode.String())
				ns, err := strconv.Atoi(strings.Fields(out)[0])
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, ns)
			}
			slices.Sort(took)
			b.ReportMetric(0, "ns/op") // the process's own start is not of interest
			b.ReportMetric(float64(took[len(took)/2])/1000, "µs-median")
			b.ReportMetric(float64(took[0])/1000, "µs-least")
		})
	}
}

// BenchmarkSyscall compares system calls with and without a jail, each in a
// child that reports nanoseconds a call.
func BenchmarkSyscall(b *testing.B) {
	for _, mode := range []Mode{Off, Enforce} {
		for _, call := range []string{"write", "kvmrun"} {
			b.Run(call+"/"+mode.String(), func(b *testing.B) {
				var ns []float64
				for b.Loop() {
					v, err := strconv.ParseFloat(strings.Fields(mustPass(b, "bench:"+mode.String()+"/"+call))[0], 64)
					if err != nil {
						b.Fatal(err)
					}
					ns = append(ns, v)
				}
				slices.Sort(ns)
				b.ReportMetric(ns[len(ns)/2], "ns/op")
			})
		}
	}
}

// thread runs functions on one OS thread of its own.
type thread struct{ do chan func() }

func newThread() *thread {
	t := &thread{do: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range t.do {
			f()
		}
	}()
	t.run(func() {}) // the thread is there when this returns
	return t
}

func (t *thread) run(f func()) {
	done := make(chan struct{})
	t.do <- func() { f(); close(done) }
	<-done
}
