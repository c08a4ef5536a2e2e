package suite

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

// gatePart measures the few figures that mean the same on any machine, however busy,
// and fails where a bound is missed beyond doubt: what a change is held against.
func (r *runner) gatePart(ctx context.Context) error {
	subjects, absent := boot.Find(r.dir, r.Program, []string{"qemu"})
	r.absent(absent...)
	kernel, quiet := r.Kernel, r.Quiet
	r.Kernel, r.Quiet = "none", false
	defer func() { r.Kernel, r.Quiet = kernel, quiet }()
	report, err := r.starts(ctx, boot.Pair(subjects))
	if err != nil {
		return err
	}
	before := len(r.set.Goals)
	if err := report.Gate(r.set, r.set.Program.Stripped); err != nil {
		return err
	}
	return missed(r.set.Goals[before:])
}

// missed is an error if a goal is.
func missed(goals []figures.Goal) error {
	i := slices.IndexFunc(goals, func(g figures.Goal) bool { return g.Verdict == stats.Missed })
	if i < 0 {
		return nil
	}
	g := goals[i]
	return fmt.Errorf("%s: %s, at most %s%s", g.What, g.Figure, stats.Digits(g.Bound), strings.TrimRight(" "+g.Unit, " "))
}
