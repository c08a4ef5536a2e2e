package jail

import (
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// struct seccomp_data (linux/seccomp.h): where the filter finds the number,
// the architecture and the six 64-bit arguments, low half first on x86-64.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// x32Bit marks the x32 ABI's system calls (asm/unistd.h __X32_SYSCALL_BIT):
// the same kernel code behind other numbers.
const x32Bit = 0x40000000

// verdicts are the filter's return values in one mode.
type verdicts struct{ eperm, enosys, kill uint32 }

func verdictsOf(m Mode) verdicts {
	switch m {
	case Log:
		return verdicts{unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_LOG}
	case Trap:
		// ENOSYS stays: it is an answer that the caller is made for.
		return verdicts{unix.SECCOMP_RET_TRAP, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), unix.SECCOMP_RET_TRAP}
	default:
		return verdicts{unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM),
			unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), unix.SECCOMP_RET_KILL_PROCESS}
	}
}

func (v verdicts) of(a action) uint32 {
	switch a {
	case kill:
		return v.kill
	case noSys:
		return v.enosys
	default:
		return v.eperm
	}
}

// generator writes a program from its end to its beginning, so that the place
// of everything that is jumped to is known. Small matters: the kernel checks,
// converts and compiles the program while a machine waits to start.
type generator struct {
	rev  []bpf.RawInstruction // the last instruction first
	rets map[uint32]label     // the nearest return of each value
	err  error
}

// label is an instruction's index in rev.
type label int

func (g *generator) emit(in bpf.Instruction) label {
	raw, err := in.Assemble()
	if err != nil && g.err == nil {
		g.err = err
	}
	g.rev = append(g.rev, raw)
	return label(len(g.rev) - 1)
}

// skip is how many instructions lie between the next one to be emitted and l.
func (g *generator) skip(l label) int { return len(g.rev) - 1 - int(l) }

// near gives l, or a jump to it where a conditional jump (255 instructions at
// most) would not reach; the margin is for what one test emits in between.
func (g *generator) near(l label) label {
	if g.skip(l) > 250 {
		return g.emit(bpf.Jump{Skip: uint32(g.skip(l))})
	}
	return l
}

// ret is a return within reach.
func (g *generator) ret(v uint32) label {
	if l, ok := g.rets[v]; ok && g.skip(l) <= 250 {
		return l
	}
	l := g.emit(bpf.RetConstant{Val: v})
	g.rets[v] = l
	return l
}

// test goes on at yes when A passes, else at no.
func (g *generator) test(t bpf.JumpTest, val uint32, yes, no label) label {
	yes = g.near(yes)
	no = g.near(no)
	return g.emit(bpf.JumpIf{Cond: t, Val: val, SkipTrue: uint8(g.skip(yes)), SkipFalse: uint8(g.skip(no))})
}

// load puts a word of seccomp_data into A.
func (g *generator) load(off uint32) label { return g.emit(bpf.LoadAbsolute{Off: off, Size: 4}) }

// span is what is done for every value from first up to the next span's first:
// a verdict, or a rule's tests where there is one. Neighbours that do the same
// are one span.
type span struct {
	first   uint32
	verdict uint32
	rule    *rule
}

func add(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].rule == s.rule && spans[n-1].verdict == s.verdict {
		return spans
	}
	return append(spans, s)
}

// search is a balanced binary search of A over the spans; the first begins at 0.
func (g *generator) search(spans []span, v verdicts) label {
	if len(spans) == 1 {
		if r := spans[0].rule; r != nil {
			return g.rule(r, v)
		}
		return g.ret(spans[0].verdict)
	}
	mid := len(spans) / 2
	right := g.search(spans[mid:], v)
	left := g.search(spans[:mid], v)
	return g.test(bpf.JumpGreaterOrEqual, spans[mid].first, right, left)
}

// rule tests the arguments of one rule.
func (g *generator) rule(r *rule, v verdicts) label {
	no := g.ret(v.of(r.act))
	if r.among != nil {
		vals := slices.Clone(r.among.vals[1:])
		slices.Sort(vals)
		var spans []span
		next := uint32(0)
		for _, val := range vals {
			if val > next {
				spans = add(spans, span{first: next, verdict: v.of(r.act)})
			}
			spans = add(spans, span{first: val, verdict: unix.SECCOMP_RET_ALLOW})
			next = val + 1
		}
		l := g.search(add(spans, span{first: next, verdict: v.of(r.act)}), v)
		g.test(bpf.JumpEqual, r.among.vals[0], g.ret(unix.SECCOMP_RET_ALLOW), l)
		return g.load(offArgs + 8*r.among.arg)
	}
	for i := len(r.when) - 1; i >= 0; i-- {
		yes := g.ret(unix.SECCOMP_RET_ALLOW)
		for j := len(r.when[i]) - 1; j >= 0; j-- {
			yes = g.cond(r.when[i][j], yes, no)
		}
		no = yes
	}
	return no
}

// cond tests one condition.
func (g *generator) cond(c cond, yes, no label) label {
	low := offArgs + 8*c.arg
	switch c.op {
	case opEq64:
		g.test(bpf.JumpEqual, uint32(c.val>>32), yes, no)
		yes = g.load(low + 4)
		g.test(bpf.JumpEqual, uint32(c.val), yes, no)
	case opAnyBit:
		g.test(bpf.JumpBitsSet, uint32(c.val), yes, no)
	case opNoBit:
		g.test(bpf.JumpBitsSet, uint32(c.val), no, yes)
	default: // opEq
		g.test(bpf.JumpEqual, uint32(c.val), yes, no)
	}
	return g.load(low)
}

// assemble makes the filter of a table, which is sorted by number. KVM_RUN is
// decided first of all: ioctl is the one frequent call whose arguments matter,
// and since Linux 5.11 the kernel keeps a bitmap of the numbers that are
// allowed whatever their arguments and runs no program for those.
func assemble(rules []rule, m Mode) ([]bpf.RawInstruction, error) {
	v := verdictsOf(m)
	g := &generator{rev: make([]bpf.RawInstruction, 0, 512), rets: make(map[uint32]label, 8)}
	spans := make([]span, 0, 2*len(rules)+1)
	var ioctl *rule
	next := uint32(0)
	for i := range rules {
		r := &rules[i]
		if i > 0 && r.nr <= rules[i-1].nr {
			return nil, fmt.Errorf("jail: the table is out of order at system call %d", r.nr)
		}
		if r.nr > next {
			spans = add(spans, span{first: next, verdict: v.eperm})
		}
		s := span{first: r.nr, rule: r}
		switch {
		case r.never:
			s = span{first: r.nr, verdict: v.of(r.act)}
		case r.among == nil && len(r.when) == 0:
			s = span{first: r.nr, verdict: unix.SECCOMP_RET_ALLOW}
		case r.nr == unix.SYS_IOCTL:
			// Decided before the search, so whatever stands here serves.
			ioctl = r
			s = span{first: r.nr, verdict: v.eperm}
		}
		spans = add(spans, s)
		next = r.nr + 1
	}
	spans = add(spans, span{first: next, verdict: v.eperm})

	top := g.search(spans, v)
	if ioctl != nil {
		top = g.test(bpf.JumpEqual, ioctl.nr, g.rule(ioctl, v), top)
	}
	g.test(bpf.JumpGreaterOrEqual, x32Bit, g.ret(v.kill), top)
	top = g.load(offNr)
	g.test(bpf.JumpEqual, unix.AUDIT_ARCH_X86_64, top, g.ret(v.kill))
	g.load(offArch)
	if g.err != nil {
		return nil, fmt.Errorf("jail: %w", g.err)
	}
	if len(g.rev) > 4096 { // BPF_MAXINSNS
		return nil, fmt.Errorf("jail: a filter of %d instructions, and the kernel takes 4096", len(g.rev))
	}
	slices.Reverse(g.rev)
	return g.rev, nil
}
