package oci

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Credential is what a registry knows somebody by; the zero value is nobody.
type Credential struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token, instead of them
	// Helper names the program that docker would ask; smolvmm does not run it.
	Helper string
}

// maxDockerConfig bounds docker's config.json, bytes.
const maxDockerConfig = 1 << 20

// DockerCredentials reads docker's config.json (docker's manual, "docker login",
// Credential stores) and gives what it has for each registry. A file that is not
// there has nothing.
func DockerCredentials(path string) (func(host string) Credential, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return func(string) Credential { return Credential{} }, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDockerConfig+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	get, err := parseDocker(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return get, nil
}

type dockerConfig struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

func parseDocker(b []byte) (func(host string) Credential, error) {
	if len(b) > maxDockerConfig {
		return nil, fmt.Errorf("more than %d bytes", maxDockerConfig)
	}
	var c dockerConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	all := map[string]Credential{}
	for key, a := range c.Auths {
		cred := Credential{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}
		if a.Auth != "" {
			raw, err := base64.StdEncoding.DecodeString(a.Auth)
			user, pass, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
			if err != nil || !ok {
				// The value is a secret: it is not repeated.
				return nil, fmt.Errorf("auths: %q: its auth is not the base64 of user:password", key)
			}
			cred.Username, cred.Password = user, pass
		}
		if cred.IdentityToken != "" { // docker writes the user <token> beside it
			cred.Username, cred.Password = "", ""
		}
		all[registryOf(key)] = cred
	}
	return func(host string) Credential {
		host = registryOf(host)
		helper := c.CredHelpers[host]
		cred, ok := all[host]
		if ok && helper == "" && (cred.Username != "" || cred.IdentityToken != "") {
			return cred
		}
		if helper == "" {
			helper = c.CredsStore
		}
		return Credential{Helper: helper}
	}, nil
}

// registryOf is a key of auths without what old dockers wrote around it.
func registryOf(key string) string {
	_, rest, ok := strings.Cut(key, "://")
	if ok {
		key = rest
	}
	key, _, _ = strings.Cut(key, "/")
	switch key {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return key
}
