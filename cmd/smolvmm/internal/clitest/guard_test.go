package clitest

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

const victimVar = "SMOLVMM_TEST_VICTIM"

// TestVictim is the test binary that TestGuard kills.
func TestVictim(t *testing.T) {
	if os.Getenv(victimVar) == "" {
		t.Skip("run by TestGuard")
	}
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("child " + strconv.Itoa(c.Process.Pid) + " " + Folder(t) + "\n")
	if os.Getenv(victimVar) == "leaves" {
		return
	}
	select {}
}

// TestGuard: what a test binary has started ends with it, though in a session of its
// own, when it is killed; one that leaves something behind fails.
func TestGuard(t *testing.T) {
	for _, how := range []string{"killed", "leaves"} {
		c := exec.Command("/proc/self/exe", "-test.run=^TestVictim$")
		c.Env = append(os.Environ(), victimVar+"="+how)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs strings.Builder
		c.Stderr = &errs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		f := strings.Fields(line)
		if err != nil || len(f) != 3 {
			t.Fatalf("%q, %v", line, err)
		}
		pid, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil && how == "killed" {
			t.Fatal(err)
		}
		if how == "killed" {
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		err = c.Wait()
		if err == nil {
			t.Errorf("%s: no error", how)
		}
		if fd >= 0 {
			if !ends(fd, 4*endsByItself) {
				t.Errorf("%s: its child lives", how)
			}
			unix.Close(fd)
		}
		if how == "leaves" && !strings.Contains(errs.String(), "left a process behind: "+f[1]+" sleep 1000") {
			t.Errorf("%s: it says %q", how, errs.String())
		}
		for end := 0; ; end++ { // the folder goes after the process
			if _, err := os.Stat(f[2]); os.IsNotExist(err) {
				break
			} else if end == 1000 {
				t.Fatalf("%s: its folder is left", how)
			}
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil)
		}
	}
}
