// Package clitest runs the programs under test and watches what they do.
package clitest

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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// AsProgram makes the test binary be the program: the only smolvmm there is
// where no Go toolchain can build one, and one whose insides a test can break.
const AsProgram = "SMOLVMM_TEST_AS_PROGRAM"

var environ = slices.Clip(os.Environ())

// scratch is a folder that goes with this process, however it ends. Its name is short:
// a socket's path has 107 bytes.
var scratch = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "smolvmm-test-")
	if err != nil {
		panic(err)
	}
	return dir
})

// Folder makes a folder with a short name.
func Folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch(), "")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Program gives the program under test and its environment: a build of both as
// users have it, or this test binary.
var Program = sync.OnceValues(func() (path string, env []string) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		return self, []string{AsProgram + "=run"}
	}
	dir := filepath.Join(scratch(), "bin")
	if err := os.Mkdir(dir, 0o700); err != nil {
		panic(err)
	}
	path = filepath.Join(dir, "smolvmm")
	c := exec.Command(tool, "build", "-o", dir, "github.com/smolvmm/smolvmm/cmd/smolvmm", "github.com/smolvmm/smolvmm/cmd/smolvmm/smolvmm-full")
	// As we were started: a test may have moved the cache folder since.
	c.Env = append(environ, "CGO_ENABLED=0", markName+"="+os.Getenv(markName))
	if out, err := c.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("go build: %v\n%s", err, out))
	}
	return path, nil
})

// Smolvmm is the program with arguments, killed after a minute.
func Smolvmm(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, env := Program()
	c := exec.CommandContext(t.Context(), path, args...)
	c.Env = append(os.Environ(), env...)
	// Nothing of the tester's own: no cached kernel, no mirror.
	c.Env = append(c.Env, "XDG_CACHE_HOME="+t.TempDir(), "SMOLVMM_NETBSD_MIRROR=http://127.0.0.1:1")
	c.WaitDelay = 10 * time.Second
	return c
}

// Result is what a finished program leaves.
type Result struct {
	Status   int
	Out, Err string
}

// Finish runs a command to its end. A death by a signal is 128 and its number,
// as the shell has it.
func Finish(t testing.TB, c *exec.Cmd) Result {
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
	return Result{StatusOfProcess(c.ProcessState), out.String(), errs.String()}
}

func StatusOfProcess(p *os.ProcessState) int {
	if ws := p.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.ExitCode()
}

// needKVM skips where no machine can be made.
var KvmError = sync.OnceValue(func() error {
	_, err := vmm.ProbeKVM("/dev/kvm")
	return err
})

func NeedKVM(t testing.TB) {
	t.Helper()
	if err := KvmError(); err != nil {
		t.Skipf("NOT RUN: no machine can be made here: %v", err)
	}
}

// Transcript collects output and lets a test wait for some.
type Transcript struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	done bool
}

func NewTranscript() *Transcript {
	c := &Transcript{}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *Transcript) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p...)
	c.cond.Broadcast()
	return len(p), nil
}

func (c *Transcript) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}

// From collects what r gives, in the background, until it ends.
func (c *Transcript) From(r io.Reader) {
	go func() {
		_, _ = io.Copy(c, r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.done = true
		c.cond.Broadcast()
	}()
}

// Wait blocks until the transcript matches re, and gives the first submatch.
func (c *Transcript) Wait(t testing.TB, re string) string {
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

// Scratch makes a sparse disk image.
func Scratch(t testing.TB, size int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, size)); err != nil {
		t.Fatal(err)
	}
	return p
}

func MustContain(t testing.TB, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q:\n%s", what, w, text)
		}
	}
}

// Start starts the program and collects its standard error.
func Start(t *testing.T, args ...string) *running {
	t.Helper()
	NeedKVM(t)
	c := Smolvmm(t, args...)
	r, w := Pipe(t)
	c.Stderr = w
	p := &running{t: t, Errs: NewTranscript(), Kill: func(s os.Signal) error { return c.Process.Signal(s) }}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	p.Errs.From(r)
	p.Pid = c.Process.Pid
	p.wait = func() int {
		_ = c.Wait()
		return StatusOfProcess(c.ProcessState)
	}
	t.Cleanup(func() { _ = c.Process.Kill() })
	return p
}

// running is a program under way.
type running struct {
	t    *testing.T
	Pid  int
	Errs *Transcript
	Kill func(os.Signal) error
	wait func() int
}

func (p *running) Ended(status int) {
	p.t.Helper()
	if got := p.wait(); got != status {
		p.t.Errorf("status %d, want %d:\n%s", got, status, p.Errs)
	}
}

func OpenPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("NOT RUN: no pseudo-terminal: %v", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "master")
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func Pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// DemoKernel writes the demo guest's kernel to a file, to boot it as users boot
// theirs.
func DemoKernel(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "demo.elf")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, demo.Kernel()); err != nil {
		t.Fatal(err)
	}
	return path
}

// Main runs the tests of a package, in whose test binary the program is what
// asProgram names and the like of it; see there. It fails where a test has left a
// process behind.
func Main(m *testing.M) {
	if os.Args[0] == guardName {
		guardMain()
		return
	}
	// Started from a script's background, we have signals ignored, which our
	// children would inherit: a handler that does nothing they do not.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	mark := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())
	os.Setenv(markName, mark)
	guard, err := startGuard(mark)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
		os.Exit(1)
	}
	code := m.Run()
	for _, p := range endAll(mark, endsByItself) {
		fmt.Fprintln(os.Stderr, "FAIL: a test left a process behind:", p)
		code = 1
	}
	os.RemoveAll(scratch())
	guard.Close() // which tells it that we have ended
	os.Exit(code)
}
