package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestConfined: the whole check with every kind of disk goes through, and makes
// no call that its jail does not allow: trap would end the process at the first.
func TestConfined(t *testing.T) {
	clitest.NeedKVM(t)
	for _, mode := range []string{"enforce", "trap", "off"} {
		for _, console := range []string{"stdio", "file", "pty", "unix"} {
			if mode != "trap" && console != "stdio" {
				continue
			}
			t.Run(mode+" "+console, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				where := console
				if console == "file" || console == "unix" {
					where += ":" + filepath.Join(dir, "console")
				}
				c := clitest.Smolvmm(t, "demo", "-confine", mode, "-console", where, "-c", "2",
					"-disk", clitest.Scratch(t, 1<<20), "-disk", clitest.Scratch(t, 1<<20)+",ro",
					"-disk", clitest.Scratch(t, 1<<20)+",overlay", "-disk", clitest.Scratch(t, 1<<20)+",overlay="+filepath.Join(dir, "changes"))
				r := clitest.Finish(t, c)
				if r.Status != 0 {
					t.Errorf("%+v", r)
				}
				if console == "stdio" {
					clitest.MustContain(t, "the guest's report", r.Out, "devices found=5", "fail=0")
				}
			})
		}
	}
}

// TestConfinedStatus: the kernel says of every thread what is on it.
func TestConfinedStatus(t *testing.T) {
	for mode, want := range map[string][]string{
		"enforce": {"NoNewPrivs:\t1", "Seccomp:\t2"},
		"off":     {"NoNewPrivs:\t0"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			p := clitest.Start(t, "demo", "-confine", mode, "-trace", "-console", "none", "count")
			p.Errs.Wait(t, "(?s)disk0.*disk0") // the guest uses its disk
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid))
			if err != nil || len(threads) < 3 {
				t.Fatalf("%d threads, %v", len(threads), err)
			}
			for _, path := range threads {
				b, err := os.ReadFile(path)
				if os.IsNotExist(err) {
					continue // it has ended
				}
				clitest.MustContain(t, path, string(b), want...)
			}
			if err := p.Kill(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.Ended(128 + 15)
		})
	}
}

// afterRun are calls that open or execute something.
var afterRun = regexp.MustCompile(`\b(open|openat|openat2|creat|execve|execveat|socket|connect|memfd_create|name_to_handle_at|open_by_handle_at|epoll_create1?|eventfd2?|pipe2?|dup[23]?|mkdir|unlink|unlinkat|rename|renameat2?)\(`)

// TestNothingOpenedAfterRun: with nothing to stop it, too, the program opens and
// executes nothing once the guest runs.
func TestNothingOpenedAfterRun(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	tracer, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("NOT RUN: no strace; TestConfined says the same of a jailed process")
	}
	path, env := clitest.Program()
	out := filepath.Join(t.TempDir(), "strace")
	calls := "ioctl,open,openat,openat2,creat,execve,execveat,socket,connect,memfd_create,epoll_create1,eventfd2,pipe2,dup,dup2,dup3,mkdir,unlink,unlinkat,rename,renameat,renameat2"
	c := exec.CommandContext(t.Context(), tracer, "-f", "-o", out, "-e", "trace="+calls, path,
		"demo", "-confine", "off", "-c", "2", "-disk", clitest.Scratch(t, 1<<20), "-disk", clitest.Scratch(t, 1<<20)+",overlay")
	c.Env = append(os.Environ(), env...)
	r := clitest.Finish(t, c)
	if r.Status != 0 {
		if strings.Contains(r.Err, "ptrace") {
			t.Skipf("NOT RUN: strace is not allowed here: %s", r.Err)
		}
		t.Fatalf("%+v", r)
	}
	trace, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	before, after, ran := strings.Cut(string(trace), "KVM_RUN")
	if !ran || !afterRun.MatchString(before) {
		t.Fatalf("the trace is of no use:\n%.2000s", trace)
	}
	for line := range strings.Lines(after) {
		if afterRun.MatchString(line) {
			t.Errorf("after the first KVM_RUN: %s", line)
		}
	}
}
