package spec

import (
	"errors"
	"fmt"
	"strings"
)

// Reference names an image: [registry/]name[:tag][@sha256:…]. The grammar is
// the OCI distribution specification's (Pulling manifests) for name, tag and
// digest, and Docker's for telling a registry from a name's first part.
type Reference struct {
	Registry string // host[:port], "" for a name without one
	Name     string // lower case, parts separated by slashes
	Tag      string // "" where a digest alone is given
	Digest   string // "sha256:…" or ""
}

// DefaultTag is a reference's where it has neither tag nor digest.
const DefaultTag = "latest"

const (
	maxName = 255 // bytes of registry and name: what registries agree on
	maxTag  = 128
)

// ParseReference reads a reference; a missing tag becomes DefaultTag unless there is a digest.
func ParseReference(s string) (Reference, error) {
	var r Reference
	bad := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("image name %q: %s; want [registry/]name[:tag][@sha256:…]", clip(s), why)
	}
	rest, digest, has := strings.Cut(s, "@")
	if has {
		if err := CheckDigest(digest); err != nil {
			return bad(err.Error())
		}
		r.Digest = digest
	}
	slash := strings.LastIndexByte(rest, '/')
	if i := strings.LastIndexByte(rest, ':'); i > slash {
		r.Tag = rest[i+1:]
		rest = rest[:i]
		if err := CheckTag(r.Tag); err != nil {
			return bad(err.Error())
		}
	}
	if len(rest) > maxName {
		return bad(fmt.Sprintf("the name has more than %d bytes", maxName))
	}
	if i := strings.IndexByte(rest, '/'); i >= 0 && isRegistry(rest[:i]) {
		r.Registry, rest = rest[:i], rest[i+1:]
		if err := checkRegistry(r.Registry); err != nil {
			return bad(err.Error())
		}
	}
	for part := range strings.SplitSeq(rest, "/") {
		if !component(part) {
			return bad("parts of a name are lower-case letters and digits, with single dots, one or two underscores or hyphens between them")
		}
	}
	r.Name = rest
	if r.Tag == "" && r.Digest == "" {
		r.Tag = DefaultTag
	}
	return r, nil
}

// Repository is the reference without tag and digest.
func (r Reference) Repository() string {
	if r.Registry != "" {
		return r.Registry + "/" + r.Name
	}
	return r.Name
}

// String writes the reference in full, tag included.
func (r Reference) String() string {
	s := r.Repository()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// Tagged is the reference without a digest: what a store files an image under.
func (r Reference) Tagged() Reference {
	r.Digest = ""
	if r.Tag == "" {
		r.Tag = DefaultTag
	}
	return r
}

// CheckDigest tells whether s is "sha256:" and 64 lower-case hexadecimal digits.
func CheckDigest(s string) error {
	hex, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return fmt.Errorf("the digest %q is not sha256: and 64 hexadecimal digits", clip(s))
	}
	return nil
}

// CheckTag tells whether s can be a tag.
func CheckTag(s string) error {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' || !onlyName(s) {
		return fmt.Errorf("the tag %q is not one to %d letters, digits, dots, hyphens and underscores", clip(s), maxTag)
	}
	return nil
}

// isRegistry is Docker's rule: a first part that no name could have.
func isRegistry(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:[") || strings.ToLower(s) != s
}

func checkRegistry(s string) error {
	bad := errors.New("the registry is not a host name or address with perhaps a port")
	host, port := s, ""
	if strings.HasPrefix(s, "[") { // an IPv6 address
		end := strings.IndexByte(s, ']')
		if end < 0 || strings.Trim(s[1:end], "0123456789abcdefABCDEF:") != "" || end == 1 {
			return bad
		}
		rest := s[end+1:]
		if rest == "" {
			return nil
		}
		if rest[0] != ':' {
			return bad
		}
		host, port = "v6", rest[1:]
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	if host != s && (port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "") {
		return bad
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		for i := range len(label) {
			if !alnum(label[i]) && label[i] != '-' {
				return bad
			}
		}
	}
	return nil
}

// component is [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*.
func component(s string) bool {
	word := func() bool {
		rest := strings.TrimLeft(s, "abcdefghijklmnopqrstuvwxyz0123456789")
		ok := rest != s
		s = rest
		return ok
	}
	if !word() {
		return false
	}
	for s != "" {
		switch {
		case s[0] == '-':
			s = strings.TrimLeft(s, "-")
		case strings.HasPrefix(s, "__"):
			s = s[2:]
		case s[0] == '.' || s[0] == '_':
			s = s[1:]
		default:
			return false
		}
		if !word() {
			return false
		}
	}
	return true
}

// clip keeps a stranger's text from filling the screen.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
