package contracts_test

import (
	"encoding/json"
	"errors"
	"math"
	"testing"

	"github.com/jcp/ticketwave/contracts"
)

func TestParseAmount(t *testing.T) {
	t.Parallel()
	good := map[string]contracts.Amount{
		"0": 0, "0.00": 0, "0.01": 1, "0.1": 10, "1": 100, "25.00": 2500, "25.5": 2550, "999999999999.99": contracts.MaxAmount,
	}
	for text, want := range good {
		if got, err := contracts.ParseAmount(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", ".", "1.", ".5", "-1", "+1", "01", "00", "1.001", "1e3", "1,00", " 1", "1 ", "1.0.0", "1_000", "0x1", "NaN",
		"٣", "1000000000000", "99999999999999999999", "1.-1",
	} {
		if got, err := contracts.ParseAmount(text); !errors.Is(err, contracts.ErrAmount) {
			t.Errorf("%q: %d, %v; want ErrAmount", text, got, err)
		}
	}
}

func TestAmountInJSON(t *testing.T) {
	t.Parallel()
	body, err := json.Marshal(struct{ A contracts.Amount }{2505})
	if err != nil || string(body) != `{"A":"25.05"}` {
		t.Errorf("%s, %v", body, err)
	}
	for _, impossible := range []contracts.Amount{-1, contracts.MaxAmount + 1, math.MinInt64} {
		if body, err := json.Marshal(impossible); !errors.Is(err, contracts.ErrAmount) {
			t.Errorf("%d is written as %s, %v", int64(impossible), body, err)
		}
	}
	for _, body := range []string{`25`, `25.00`, `null`, `true`, `{}`, `["1"]`, `"1.001"`, `""`} {
		amount := contracts.Amount(7)
		if err := json.Unmarshal([]byte(body), &amount); !errors.Is(err, contracts.ErrAmount) || amount != 7 {
			t.Errorf("%s: %v, and the amount is %d", body, err, amount)
		}
	}
}

func TestAmountTimes(t *testing.T) {
	t.Parallel()
	if total, err := contracts.Amount(2550).Times(3); err != nil || total != 7650 {
		t.Errorf("%s, %v", total, err)
	}
	if total, err := contracts.MaxAmount.Times(0); err != nil || total != 0 {
		t.Errorf("%s, %v", total, err)
	}
	for _, impossible := range []struct {
		amount contracts.Amount
		n      int
	}{{contracts.MaxAmount, 2}, {100, math.MaxInt}, {100, -1}, {-100, 1}} {
		if total, err := impossible.amount.Times(impossible.n); !errors.Is(err, contracts.ErrAmount) {
			t.Errorf("%s times %d is %s, %v", impossible.amount, impossible.n, total, err)
		}
	}
}

func TestAmountString(t *testing.T) {
	t.Parallel()
	for amount, want := range map[contracts.Amount]string{0: "0.00", 5: "0.05", 2500: "25.00", -105: "-1.05", math.MinInt64: "-92233720368547758.08"} {
		if amount.String() != want {
			t.Errorf("%d is %s, want %s", int64(amount), amount, want)
		}
	}
}

func TestValidCurrency(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{"EUR": true, "JPY": true, "": false, "eur": false, "EU": false, "EURO": false, "E R": false, "ÄÖÜ": false, "€": false} {
		if contracts.ValidCurrency(code) != want {
			t.Errorf("%q: %v", code, !want)
		}
	}
}

// What is taken is a valid amount, is written in one form, and that form is read as the same amount.
func FuzzAmount(f *testing.F) {
	for _, seed := range []string{`"25.00"`, `"0"`, `"999999999999.99"`, `25`, `null`, `"-1.00"`, `"1.5"`, `"\u0031.00"`, `"1e9"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var amount contracts.Amount
		if json.Unmarshal(body, &amount) != nil {
			return
		}
		if !amount.Valid() {
			t.Fatalf("%s is taken as %d", body, int64(amount))
		}
		written, err := json.Marshal(amount)
		if err != nil {
			t.Fatal(err)
		}
		var again contracts.Amount
		if err := json.Unmarshal(written, &again); err != nil || again != amount {
			t.Fatalf("%s is written as %s and read as %d, %v", body, written, int64(again), err)
		}
	})
}
