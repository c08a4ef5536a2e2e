package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/smolvmm/smolvmm/netstack/policy"
	"github.com/smolvmm/smolvmm/netstack/publish"
)

// Plan is what the flags ask for, checked: nothing has been opened on the host
// but the rules' file, to read it.
type Plan struct {
	Interfaces []Interface
	name       string
	publish    []publish.Spec
	services   []uint16
	policy     *policy.Policy // nil: open
	names      map[string][]netip.Addr
	search     string
	audit      string
}

// Plan checks the flags. Its errors are the user's to mend, and name the flag.
func (f Flags) Plan() (*Plan, error) {
	p := &Plan{name: f.Name, search: f.Search, audit: f.Audit}
	if f.Name != "" {
		if err := CheckName(f.Name); err != nil {
			return nil, err
		}
	}
	var err error
	if p.Interfaces, err = f.parse(); err != nil {
		return nil, err
	}
	if err := f.addresses(p.Interfaces); err != nil {
		return nil, err
	}
	for _, s := range f.Publish {
		spec, err := publish.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("-p: %w", err)
		}
		p.publish = append(p.publish, spec)
	}
	if p.services, err = f.services(); err != nil {
		return nil, err
	}
	if p.names, err = f.names(); err != nil {
		return nil, err
	}
	if f.Search != "" {
		if err := checkDomain(f.Search); err != nil {
			return nil, fmt.Errorf("-search %q: %w", f.Search, err)
		}
	}
	if p.policy, err = f.rules(); err != nil {
		return nil, err
	}
	return p, nil
}

// rules reads the egress policy: the flags in their order, then the file, so
// that a flag can be an exception of what the file has. No rules are no policy.
func (f Flags) rules() (*policy.Policy, error) {
	var rules []policy.Rule
	for _, s := range f.Egress {
		r, err := policy.ParseRule(s)
		if err != nil {
			return nil, fmt.Errorf("-egress: %w", err)
		}
		rules = append(rules, r)
	}
	if f.EgressFile != "" {
		in, err := os.Open(f.EgressFile)
		if err != nil {
			return nil, fmt.Errorf("-egress-file %s: %w", f.EgressFile, plain(err))
		}
		defer in.Close()
		more, err := policy.ParseRules(in, f.EgressFile)
		if err != nil {
			return nil, fmt.Errorf("-egress-file: %w", err)
		}
		rules = append(rules, more...)
	}
	if rules == nil && f.EgressFile == "" {
		return nil, nil
	}
	p, err := policy.New(rules...)
	if err != nil {
		return nil, fmt.Errorf("-egress: %w", err)
	}
	return p, nil
}

// nothing: the flags ask for no interface and no log.
func (p *Plan) nothing() bool { return len(p.Interfaces) == 0 && p.audit == "" }

// Sockets are the paths of Unix sockets that will be listened on.
func (p *Plan) Sockets() []string { return p.unixPaths() }

// unixPaths are the Unix sockets to publish.
func (p *Plan) unixPaths() (paths []string) {
	for _, s := range p.publish {
		if s.Network == "unix" {
			paths = append(paths, s.Path)
		}
	}
	return slices.Compact(paths)
}

// plain is a file's error without its path and the system call.
func plain(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
