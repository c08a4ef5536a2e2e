package spec

import (
	"fmt"
	"maps"
	"strings"
)

// Init is the part of smolinit's document that an image decides
// (docs/smolinit.md, Configuration); it marshals to that document.
type Init struct {
	Argv     []string          `json:"argv,omitempty"`
	Env      map[string]string `json:"env,omitempty"`
	Cwd      string            `json:"cwd,omitempty"`
	UID      uint32            `json:"uid,omitempty"`
	GID      uint32            `json:"gid,omitempty"`
	Groups   []uint32          `json:"groups,omitempty"`
	Hostname string            `json:"hostname,omitempty"`
	RootRO   bool              `json:"root_readonly,omitempty"`
	Quiet    bool              `json:"quiet,omitempty"`
	Grace    *int              `json:"grace,omitempty"`
}

// ToInit gives the document for c: args replace Cmd, env goes over Env.
func (c *Config) ToInit(args []string, env map[string]string) (Init, error) {
	if err := c.Validate(); err != nil {
		return Init{}, fmt.Errorf("config: %w", err)
	}
	doc := Init{
		Argv: c.Argv(args), Env: map[string]string{}, Cwd: c.WorkingDir,
		UID: c.UID, GID: c.GID, Groups: append([]uint32(nil), c.Groups...),
	}
	for _, e := range c.Env {
		k, v, _ := strings.Cut(e, "=")
		doc.Env[k] = v
	}
	maps.Copy(doc.Env, env)
	return doc, nil
}
