package contracts

import (
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of what an event may say.
const (
	// MaxTickets bounds every count of tickets.
	MaxTickets = 1_000_000
	// MaxName is the longest name, in characters.
	MaxName = 200
	// MaxURL is the longest URL, in bytes.
	MaxURL = 2048
	// MaxErrorMessage is the longest error message, in characters.
	MaxErrorMessage = 1000
)

// first is the first error there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func check(ok bool, field, want string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("%s: must be %s", field, want)
}

const nilID = "00000000-0000-0000-0000-000000000000"

// checkID takes a UUID as it is written by every service: lower case, since ids are keys and are compared.
func checkID(field, id string) error {
	ok := len(id) == 36 && id != nilID
	for i := 0; ok && i < len(id); i++ {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			ok = id[i] == '-'
		} else {
			ok = strings.IndexByte("0123456789abcdef", id[i]) >= 0
		}
	}
	return check(ok, field, "a UUID in lower case")
}

func checkCount(field string, n, least int) error {
	return check(n >= least && n <= MaxTickets, field, fmt.Sprintf("from %d to %d", least, MaxTickets))
}

func checkVersion(field string, version int64) error {
	return check(version >= 1, field, "1 or more")
}

// checkAmount takes what can be charged. Zero is what a field that is missing decodes to.
func checkAmount(field string, a Amount) error {
	return check(a.Valid() && a > 0, field, "an amount from 0.01 to "+MaxAmount.String())
}

func checkCurrency(field, code string) error {
	return check(ValidCurrency(code), field, "an ISO 4217 code of three capital letters")
}

func checkTime(field string, t time.Time) error {
	return check(!t.IsZero(), field, "a time")
}

// ValidName reports whether s can name something: 1 to MaxName printable characters, no spaces at the ends.
func ValidName(s string) bool {
	return s != "" && utf8.ValidString(s) && utf8.RuneCountInString(s) <= MaxName && strings.TrimSpace(s) == s &&
		strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

func checkName(field, s string) error {
	return check(ValidName(s), field, fmt.Sprintf("1 to %d printable characters", MaxName))
}

func checkURL(field, s string) error {
	u, err := url.Parse(s)
	ok := err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && len(s) <= MaxURL
	return check(ok, field, fmt.Sprintf("an http or https URL of at most %d bytes", MaxURL))
}

func checkKnown(field string, value interface{ Valid() bool }) error {
	return check(value.Valid(), field, "a value that this version knows")
}
