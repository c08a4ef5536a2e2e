package api

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process reads what the kernel accounts to this process. Its files are opened
// before the process is confined, and read again each time (proc(5)).
type process struct{ stat, status *os.File }

func openProcess() (*process, error) {
	p := &process{}
	var err error
	if p.stat, err = os.Open("/proc/self/stat"); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if p.status, err = os.Open("/proc/self/status"); err != nil {
		p.stat.Close()
		return nil, fmt.Errorf("api: %w", err)
	}
	return p, nil
}

func (p *process) close() { _ = errors.Join(p.stat.Close(), p.status.Close()) }

// usage is what a process has used.
type usage struct {
	cpu, guest time.Duration // of all threads; guest is the part in KVM_RUN
	threads    uint64
	resident   uint64 // bytes
	shared     uint64 // of those, bytes of shared memory: the guest's RAM
}

const (
	// procRead is more than either file has, in bytes.
	procRead = 8 << 10
	// userHZ is the unit of stat's times on x86-64 Linux (proc_pid_stat(5)).
	userHZ = 100
	// statGuest is the place of guest_time among the fields behind the
	// command's name, which ends with the last ')': 43 of all, 3 being the first.
	statGuest = 43 - 3
)

// read gives what can be read; what cannot is zero.
func (p *process) read() (u usage) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) == nil {
		u.cpu = time.Duration(ts.Nano())
	}
	buf := make([]byte, procRead)
	n, _ := p.stat.ReadAt(buf, 0)
	if i := bytes.LastIndexByte(buf[:n], ')'); i >= 0 {
		if f := bytes.Fields(buf[i+1 : n]); len(f) > statGuest {
			ticks, _ := strconv.ParseUint(string(f[statGuest]), 10, 63)
			u.guest = time.Duration(ticks) * (time.Second / userHZ)
		}
	}
	n, _ = p.status.ReadAt(buf, 0)
	for line := range bytes.Lines(buf[:n]) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		f := bytes.Fields(value)
		if len(f) == 0 {
			continue
		}
		v, _ := strconv.ParseUint(string(f[0]), 10, 54)
		switch string(name) {
		case "VmRSS":
			u.resident = v << 10
		case "RssShmem":
			u.shared = v << 10
		case "Threads":
			u.threads = v
		}
	}
	return u
}
