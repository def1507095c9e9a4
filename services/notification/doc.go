// Package notification tells users about their bookings by e-mail, and tells the others how that went.
//
// # Guarantees
//
// A mail server knows no transactions: an e-mail is sent at least once, always with the same Message-ID, which is
// made from the id of the message that asked for it, so that a second copy can be told. The row that says it was
// sent, and NotificationSent, are committed together and once.
//
//	                         sent
//	SendBookingNotification ------------------------------> success     NotificationSent
//	    |   ^                                                  |
//	    |   '-- trouble that may pass, not yet given up        | (both are final)
//	    |                                                      |
//	    '-- refused for good (5xx), or given up -----------> failure     NotificationSent with the error
//
// While trouble may pass (no connection, 4xx) the message is tried again by the inbox, which keeps the booking's
// order and lets all others by. A booking must not wait for a mail server for ever: when the request is older than
// Config.GiveUpAfter the failure is final and reported.
//
// Without a mail server each mail becomes a file, named by the message's id, written whole or not at all.
package notification
