// Package machine tells what figures were measured on, and how busy others kept it.
package machine

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host says where the figures were measured.
type Host struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	KVM    string `json:"kvm"`
	Lab    bool   `json:"lab"`
	QEMU   string `json:"qemu,omitempty"`
}

func (h Host) String() string {
	where := fmt.Sprintf("%s, %d CPUs, Linux %s, KVM: %s", h.CPU, h.CPUs, h.Kernel, h.KVM)
	if h.Lab {
		where = "the lab (an emulated machine: only ratios mean something), " + where
	}
	return where
}

// This is the machine that the process runs on.
func This() Host {
	h := Host{CPU: "unknown CPU", CPUs: runtime.NumCPU(), KVM: KVMKind(), Lab: inLab()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				h.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

func inLab() bool { return os.Getenv("SMOLVMM_LAB") != "" }

// SoftKVM is a KVM that emulates a guest's ring 0 instruction by instruction; full kernels do not run on it.
const SoftKVM = "kvm_pvm"

// KVMKind is the name of the loaded KVM module.
func KVMKind() string {
	for _, m := range []string{"kvm_intel", "kvm_amd", SoftKVM} {
		if _, err := os.Stat("/sys/module/" + m); err == nil {
			return m
		}
	}
	return "unknown"
}

// Usage is processor time in seconds: of all, and of this process with its ended children.
type Usage struct {
	at       time.Time
	all, own float64
}

// userHZ is the unit of /proc/stat on Linux/amd64, ticks a second (proc_stat(5)).
const userHZ = 100

// ReadUsage takes a reading.
func ReadUsage() (Usage, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return Usage{}, err
	}
	defer f.Close()
	u := Usage{at: time.Now()}
	if u.all, err = parseStat(f); err != nil {
		return u, err
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var r syscall.Rusage
		if err := syscall.Getrusage(who, &r); err != nil {
			return u, err
		}
		u.own += float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
	}
	return u, nil
}

// parseStat gives the seconds that all processors have been busy since the machine's start.
func parseStat(r io.Reader) (float64, error) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		f := strings.Fields(in.Text())
		if len(f) < 9 || f[0] != "cpu" {
			continue
		}
		busy := 0.0
		for i, s := range f[1:9] { // user nice system idle iowait irq softirq steal
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/stat: %q", in.Text())
			}
			if i != 3 && i != 4 {
				busy += float64(n)
			}
		}
		return busy / userHZ, nil
	}
	return 0, fmt.Errorf("/proc/stat: no line of all processors")
}

// NoisyOthers is how much processor time of others, in processors, makes times
// that were measured meanwhile doubtful.
const NoisyOthers = 0.15

// Others is how many processors' worth of time somebody else used between two readings.
func Others(a, b Usage) float64 {
	wall := b.at.Sub(a.at).Seconds()
	if wall <= 0 {
		return 0
	}
	return max(0, ((b.all-a.all)-(b.own-a.own))/wall)
}

// BusyMeter gives a function that tells how many processors others have used since it was last called.
func BusyMeter() func() float64 {
	last, err := ReadUsage()
	return func() float64 {
		now, nerr := ReadUsage()
		if err != nil || nerr != nil {
			return 0
		}
		b := Others(last, now)
		last = now
		return b
	}
}
