package kernels

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const (
	// DefaultRelease is what Fetch takes where no release is named.
	DefaultRelease = "11.0"
	// firstMajor is the first release with an official netbsd-MICROVM.
	firstMajor = 11
)

// releaseForm is a NetBSD release as its folder is named: 11.0, 11.0_RC1,
// 10.99.12. It is compiled at first use.
var releaseForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,4}))?(?:_([A-Z]{1,12})([0-9]{0,3}))?$`)
})

// Release is a parsed release; its String is the name it was parsed from.
type Release struct {
	name    string
	numbers [3]int
	stage   string // "" for a release proper, "BETA", "RC"
	step    int    // of the stage
}

func (r Release) String() string { return r.name }

// ParseRelease takes nothing that could leave the cache folder or a URL path.
func ParseRelease(s string) (Release, error) {
	m := releaseForm().FindStringSubmatch(s)
	if m == nil {
		return Release{}, Fail(ErrRelease, nil, "%.40q is not a NetBSD release: it looks like %s or %s_RC1", s, DefaultRelease, DefaultRelease)
	}
	r := Release{name: s, stage: m[4]}
	for i := range r.numbers {
		r.numbers[i], _ = strconv.Atoi(m[1+i]) // digits only, or empty for 0
	}
	r.step, _ = strconv.Atoi(m[5])
	return r, nil
}

// Compare orders releases by age; a release proper follows its candidates.
func (r Release) Compare(o Release) int {
	for i := range r.numbers {
		if c := cmp.Compare(r.numbers[i], o.numbers[i]); c != 0 {
			return c
		}
	}
	if (r.stage == "") != (o.stage == "") {
		if r.stage == "" {
			return 1
		}
		return -1
	}
	return cmp.Or(strings.Compare(r.stage, o.stage), cmp.Compare(r.step, o.step), strings.Compare(r.name, o.name))
}

// Published says whether NetBSD publishes a kernel for the release.
func (r Release) Published() error {
	if r.numbers[0] < firstMajor {
		return Fail(ErrTooOld, nil, "NetBSD %s has no official %s kernel: they are published from %d.0 on", r, Name, firstMajor)
	}
	return nil
}

// Folder is the path of the release's kernels below a mirror (release(7)).
func (r Release) Folder() string {
	return fmt.Sprintf("/pub/NetBSD/NetBSD-%s/amd64/binary/kernel/", r)
}
