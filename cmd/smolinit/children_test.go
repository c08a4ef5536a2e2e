package main

import (
	"os"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
)

// TestChildren: a process that is waited for is told of to who started it, also
// when it ends at once, and orphans are no matter.
func TestChildren(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var c children
	spec := agentd.Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", "exit 5"}, Dir: "/", Files: [3]*os.File{null, null, null}}
	for range 20 {
		pid, ended, err := c.start(spec)
		if err != nil {
			t.Fatal(err)
		}
		c.ended(child{pid: pid + 1_000_000})
		// The reaper's part, for this one process only.
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
			t.Fatal(err)
		}
		c.ended(child{pid, ws})
		c.ended(child{pid, ws}) // the number may come again
		if got := <-ended; got.ExitStatus() != 5 {
			t.Errorf("status %v", got)
		}
	}
	spec.Path = "/no/such"
	if _, _, err := c.start(spec); err == nil || len(c.waiting) != 0 {
		t.Errorf("%v, %d are waited for", err, len(c.waiting))
	}
}
