package contracts

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Amount is money in minor units: 2500 is 25.00 of a currency that stands beside it. In JSON it is a decimal
// string with two decimals, "25.00", so that no reader ever makes a binary fraction of it. It is never negative.
type Amount int64

// MaxAmount is the largest amount, 999999999999.99.
const MaxAmount Amount = 99_999_999_999_999

// ErrAmount says that a text or number is not an Amount.
var ErrAmount = errors.New(`not an amount: want a decimal string such as "25.00", from 0 to ` + MaxAmount.String())

const maxWhole = 12 // digits before the point

// ParseAmount reads "25", "25.5" or "25.00". A sign, an exponent, a leading zero, white space, more than two
// decimals, or more than MaxAmount is ErrAmount.
func ParseAmount(s string) (Amount, error) {
	whole, decimals, point := strings.Cut(s, ".")
	switch {
	case whole == "" || len(whole) > maxWhole || !digits(whole),
		len(whole) > 1 && whole[0] == '0',
		point && (decimals == "" || len(decimals) > 2 || !digits(decimals)):
		return 0, ErrAmount
	}
	minor, err := strconv.ParseInt(whole+(decimals + "00")[:2], 10, 64)
	if err != nil {
		return 0, ErrAmount
	}
	return Amount(minor), nil
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// String is the amount with two decimals.
func (a Amount) String() string {
	sign, minor := "", uint64(a)
	if a < 0 {
		sign, minor = "-", -minor
	}
	return fmt.Sprintf("%s%d.%02d", sign, minor/100, minor%100)
}

// Valid reports whether the amount is in 0 to MaxAmount.
func (a Amount) Valid() bool { return a >= 0 && a <= MaxAmount }

// Times is the amount n times. It is ErrAmount when the result is no valid amount.
func (a Amount) Times(n int) (Amount, error) {
	if !a.Valid() || n < 0 || n > 0 && a > MaxAmount/Amount(n) {
		return 0, fmt.Errorf("%s times %d: %w", a, n, ErrAmount)
	}
	return a * Amount(n), nil
}

// MarshalJSON writes the decimal string. An amount that is not Valid is an error.
func (a Amount) MarshalJSON() ([]byte, error) {
	if !a.Valid() {
		return nil, fmt.Errorf("%s: %w", a, ErrAmount)
	}
	return []byte(`"` + a.String() + `"`), nil
}

// UnmarshalJSON takes a JSON string that ParseAmount takes, and nothing else: no number, no null.
func (a *Amount) UnmarshalJSON(data []byte) error {
	if len(data) == 0 || data[0] != '"' {
		return ErrAmount
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return ErrAmount
	}
	parsed, err := ParseAmount(text)
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}

// ValidCurrency reports whether code has the shape of an ISO 4217 code: three capital letters.
func ValidCurrency(code string) bool {
	return len(code) == 3 && strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}
