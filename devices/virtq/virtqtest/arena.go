package virtqtest

import "slices"

// span is the guest addresses from lo to below hi.
type span struct{ lo, hi uint64 }

// arena hands out guest memory, first fit, in units of 16 bytes so that any run
// can hold an indirect table.
type arena struct{ free []span }

const unit = 16

func (a *arena) alloc(n uint32) (Buf, error) {
	need := (uint64(n) + unit - 1) &^ (unit - 1)
	for i := range a.free {
		s := &a.free[i]
		if s.hi-s.lo < need {
			continue
		}
		b := Buf{s.lo, n}
		s.lo += need
		if s.lo == s.hi {
			a.free = slices.Delete(a.free, i, i+1)
		}
		return b, nil
	}
	return Buf{}, ErrFull
}

func (a *arena) release(b Buf) {
	s := span{b.GPA, b.GPA + (uint64(b.Len)+unit-1)&^(unit-1)}
	if s.lo == s.hi {
		return
	}
	i, _ := slices.BinarySearchFunc(a.free, s.lo, func(e span, lo uint64) int {
		if e.lo < lo {
			return -1
		}
		return 1
	})
	a.free = slices.Insert(a.free, i, s)
	if i+1 < len(a.free) && a.free[i].hi == a.free[i+1].lo {
		a.free[i].hi = a.free[i+1].hi
		a.free = slices.Delete(a.free, i+1, i+2)
	}
	if i > 0 && a.free[i-1].hi == a.free[i].lo {
		a.free[i-1].hi = a.free[i].hi
		a.free = slices.Delete(a.free, i, i+1)
	}
}
