package labinit

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// slice is how long a thread may keep the lab's one CPU from another that wants
// it, in nanoseconds: the least that Linux takes. vCPUs that wait for each other
// in a loop are threads here, and with the 3 ms that Linux gives them a NetBSD
// kernel with four of them takes minutes to start its processors, instead of
// half of one.
const slice = "100000"

// shortSlices sets it. The knobs differ between kernels and none is needed, only
// wished for, so what is not there is left.
func shortSlices() {
	const dir = "/debug"
	if os.Mkdir(dir, 0o700) != nil || unix.Mount("debugfs", dir, "debugfs", 0, "") != nil {
		return
	}
	for _, k := range [][2]string{
		{"features", "HRTICK"}, // a timer of its own for a slice's end; the tick comes every 4 ms only
		{"base_slice_ns", slice}, {"min_granularity_ns", slice}, {"latency_ns", slice}, {"wakeup_granularity_ns", "0"},
	} {
		_ = os.WriteFile(filepath.Join(dir, "sched", k[0]), []byte(k[1]), 0)
	}
	_ = unix.Unmount(dir, 0)
	_ = os.Remove(dir)
}
