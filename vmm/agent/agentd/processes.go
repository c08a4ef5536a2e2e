//go:build linux || netbsd

package agentd

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/agent"
)

// Processes is the part of a System that makes processes, for a server that is not
// its system's first process: it waits for each by itself.
type Processes struct{}

// Start starts a process and waits for it.
func (Processes) Start(s Spec) (int, <-chan syscall.WaitStatus, error) {
	pid, err := s.Start()
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	go func() {
		var ws syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &ws, 0, nil); err != syscall.EINTR {
				break
			}
		}
		ended <- ws
	}()
	return pid, ended, nil
}

// Kill sends a signal to a process group.
func (Processes) Kill(group int, sig syscall.Signal) error { return syscall.Kill(-group, sig) }

// Info tells of this process and of its system, which was booted then.
func Info(booted time.Time) agent.Started {
	var u unix.Utsname
	_ = unix.Uname(&u)
	name, _ := os.Hostname()
	return agent.Started{
		PID: os.Getpid(), Hostname: name, Uptime: time.Since(booted).Milliseconds(),
		System: unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]),
	}
}
