package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

// asProgram makes the test binary be the program: the only smolvmm there is
// where no Go toolchain can build one, and one whose insides a test can break.
const asProgram = "SMOLVMM_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Args[0] == keeperName {
		keeperMain()
		return
	}
	if os.Args[0] == machineName {
		os.Exit(machineMain(os.Args[1:]))
	}
	switch mode := os.Getenv(asProgram); mode {
	case "":
	case "leader":
		leaderMain()
		return
	default:
		s := ownStreams()
		if mode == "panic" {
			s.started = panicOnSignal
		}
		os.Exit(run(os.Args[1:], s))
	}
	// Started from a script's background, we have signals ignored, which our
	// children would inherit: a handler that does nothing they do not.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// panicOnSignal lets a goroutine of no one's panic at SIGUSR1.
func panicOnSignal() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		<-c
		panic("injected by a test")
	}()
}

var environ = slices.Clip(os.Environ())

var buildDir = filepath.Join(os.TempDir(), fmt.Sprintf("smolvmm-test-%d", os.Getpid()))

// program gives the program under test and its environment: a build as users
// have it, or this test binary.
var program = sync.OnceValues(func() (path string, env []string) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		return self, []string{asProgram + "=run"}
	}
	path = filepath.Join(buildDir, "smolvmm")
	c := exec.Command(tool, "build", "-o", path, ".")
	// As we were started: a test may have moved the cache folder since.
	c.Env = append(environ, "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("go build: %v\n%s", err, out))
	}
	return path, nil
})

// smolvmm is the program with arguments, killed after a minute.
func smolvmm(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, env := program()
	c := exec.CommandContext(t.Context(), path, args...)
	c.Env = append(os.Environ(), env...)
	// Nothing of the tester's own: no cached kernel, no mirror.
	c.Env = append(c.Env, "XDG_CACHE_HOME="+t.TempDir(), "SMOLVMM_NETBSD_MIRROR=http://127.0.0.1:1")
	c.WaitDelay = 10 * time.Second
	return c
}

// result is what a finished program leaves.
type result struct {
	status   int
	out, err string
}

// finish runs a command to its end. A death by a signal is 128 and its number,
// as the shell has it.
func finish(t testing.TB, c *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &out
	}
	if c.Stderr == nil {
		c.Stderr = &errs
	}
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", c.Args, err)
	}
	return result{statusOfProcess(c.ProcessState), out.String(), errs.String()}
}

func statusOfProcess(p *os.ProcessState) int {
	if ws := p.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.ExitCode()
}

// invoke runs the program in this process, for what starts no machine.
func invoke(t testing.TB, env map[string]string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	status := run(args, streams{
		out: &out, err: &errs, raw: new(atomic.Bool), started: func() {},
		env:  func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		exit: func(status int) { t.Errorf("exit(%d)", status) },
	})
	return result{status, out.String(), errs.String()}
}

// needKVM skips where no machine can be made.
var kvmError = sync.OnceValue(func() error {
	_, err := vmm.ProbeKVM("/dev/kvm")
	return err
})

func needKVM(t testing.TB) {
	t.Helper()
	if err := kvmError(); err != nil {
		t.Skipf("NOT RUN: no machine can be made here: %v", err)
	}
}

// transcript collects output and lets a test wait for some.
type transcript struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	done bool
}

func newTranscript() *transcript {
	c := &transcript{}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *transcript) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p...)
	c.cond.Broadcast()
	return len(p), nil
}

func (c *transcript) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}

// from collects what r gives, in the background, until it ends.
func (c *transcript) from(r io.Reader) {
	go func() {
		_, _ = io.Copy(c, r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.done = true
		c.cond.Broadcast()
	}()
}

// wait blocks until the transcript matches re, and gives the first submatch.
func (c *transcript) wait(t testing.TB, re string) string {
	t.Helper()
	r := regexp.MustCompile(re)
	late := false
	timer := time.AfterFunc(30*time.Second, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.cond.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if m := r.FindSubmatch(c.buf); m != nil {
			return string(m[len(m)-1])
		}
		if c.done || late {
			t.Fatalf("no %q came:\n%s", re, c.buf)
		}
		c.cond.Wait()
	}
}

// scratch makes a sparse disk image.
func scratch(t testing.TB, size int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, size)); err != nil {
		t.Fatal(err)
	}
	return p
}

func mustContain(t testing.TB, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q:\n%s", what, w, text)
		}
	}
}
