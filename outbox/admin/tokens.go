package admin

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jcp/ticketwave/outbox/admin/api"
)

const (
	tokenPrefix  = "twa_" // lets scanners of leaked secrets find a token
	maxTokenFile = 256 << 10
	maxTokens    = 1000
)

var tokenName = regexp.MustCompile(`^[a-z0-9][a-z0-9._@-]{0,62}$`)

// Token is an entry of a token file: who, and what they may do.
type Token struct {
	Name string
	Role api.Role
	hash [sha256.Size]byte
}

// NewToken makes a token of 256 random bits. It returns the token, which is nowhere else, and the line for the token
// file, which does not tell it.
func NewToken(name string, role api.Role) (token, line string, err error) {
	if err := checkEntry(name, role); err != nil {
		return "", "", err
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", "", err
	}
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	sum := sha256.Sum256([]byte(token))
	return token, fmt.Sprintf("%s %s sha256:%s", name, role, hex.EncodeToString(sum[:])), nil
}

func checkEntry(name string, role api.Role) error {
	if !tokenName.MatchString(name) {
		return fmt.Errorf("name %q: want 1 to 63 of a-z, 0-9, '.', '_', '@' and '-', a letter or digit first", name)
	}
	if !role.Valid() {
		return fmt.Errorf("role %q: want viewer or operator", role)
	}
	return nil
}

// Tokens are those of a token file: a line for each, "name role sha256:hex"; empty lines and lines that begin with #
// are passed over. The file is read again when it changes. It must not be open to others (chmod o=), so that
// nobody learns who the operators are, or puts themselves among them.
type Tokens struct {
	path string

	mu      sync.Mutex
	seen    stamp
	entries []Token
	err     error
}

// stamp tells a changed file.
type stamp struct {
	modified time.Time
	size     int64
	file     os.FileInfo
}

func (s stamp) same(other stamp) bool {
	return s.file != nil && other.file != nil && os.SameFile(s.file, other.file) && s.size == other.size &&
		s.modified.Equal(other.modified) && s.file.Mode() == other.file.Mode()
}

// OpenTokens reads the file. An error names the file and the line at fault.
func OpenTokens(path string) (*Tokens, error) {
	t := &Tokens{path: path}
	if err := t.Check(); err != nil {
		return nil, err
	}
	return t, nil
}

// Check reads the file if it has changed, and returns why it lets nobody in, or nil.
func (t *Tokens) Check() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	return t.err
}

// Lookup returns the entry of a token. It compares with every entry and takes the same time whichever one fits.
func (t *Tokens) Lookup(token string) (Token, bool) {
	t.mu.Lock()
	t.refresh()
	entries := t.entries
	t.mu.Unlock()
	sum := sha256.Sum256([]byte(token))
	found := -1
	for i := range entries {
		equal := subtle.ConstantTimeCompare(sum[:], entries[i].hash[:])
		found = subtle.ConstantTimeSelect(equal, i, found)
	}
	if found < 0 {
		return Token{}, false
	}
	return entries[found], true
}

// refresh reads the file when it is another one than before, or could not be used. The caller holds mu.
func (t *Tokens) refresh() {
	info, err := os.Stat(t.path)
	if err != nil {
		t.entries, t.err = nil, fmt.Errorf("token file: %w", err)
		return
	}
	now := stamp{modified: info.ModTime(), size: info.Size(), file: info}
	if t.err == nil && now.same(t.seen) {
		return
	}
	t.seen = now
	t.entries, t.err = readTokens(t.path)
}

func readTokens(path string) ([]Token, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("token file %s is open to others (mode %04o): chmod o= %s", path, info.Mode().Perm(), path)
	}
	document, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	if len(document) > maxTokenFile {
		return nil, fmt.Errorf("token file %s is larger than %d bytes", path, maxTokenFile)
	}
	entries, err := parseTokens(document)
	if err != nil {
		return nil, fmt.Errorf("token file %s: %w", path, err)
	}
	return entries, nil
}

func parseTokens(document []byte) ([]Token, error) {
	var entries []Token
	names, hashes := map[string]bool{}, map[[sha256.Size]byte]bool{}
	lines := bufio.NewScanner(bytes.NewReader(document))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		entry, err := parseToken(line)
		switch {
		case err != nil:
			return nil, fmt.Errorf("line %d: %w", n, err)
		case names[entry.Name]:
			return nil, fmt.Errorf("line %d: the name %s stands there twice", n, entry.Name)
		case hashes[entry.hash]:
			return nil, fmt.Errorf("line %d: the token of %s stands there twice", n, entry.Name)
		case len(entries) == maxTokens:
			return nil, fmt.Errorf("more than %d tokens", maxTokens)
		}
		names[entry.Name], hashes[entry.hash] = true, true
		entries = append(entries, entry)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("it has no token: \"outboxctl token new\" makes one")
	}
	return entries, nil
}

func parseToken(line string) (Token, error) {
	const want = "want \"name role sha256:hex\", as \"outboxctl token new\" prints it"
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return Token{}, errors.New(want)
	}
	entry := Token{Name: fields[0], Role: api.Role(fields[1])}
	if err := checkEntry(entry.Name, entry.Role); err != nil {
		return Token{}, err
	}
	digits, ok := strings.CutPrefix(fields[2], "sha256:")
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != len(entry.hash) {
		return Token{}, errors.New(want) // the field itself may be a token, and is not shown
	}
	copy(entry.hash[:], sum)
	return entry, nil
}
