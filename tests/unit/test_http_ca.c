/* SPDX-License-Identifier: Apache-2.0 */
/* The CA of a sandbox: what its certificates say, and which others are taken back. */
#include "unit.h"

#include "egress/http/ca.h"

#include <errno.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>

static X509 *from_pem(const json_t *pem)
{
	BIO *bio = BIO_new_mem_buf(json_string_value(pem), -1);
	X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);

	BIO_free(bio);
	assert_non_null(cert);
	return cert;
}

static int days_left(const X509 *cert)
{
	int days, seconds;

	assert_int_equal(ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(cert)), 1);
	return days;
}

static void test_ca(void **state)
{
	struct err err = {0};
	struct ca *ca = ca_new(&err);
	json_t *pems = ca_json(ca);
	X509 *cert = from_pem(json_object_get(pems, "cert_pem"));
	EVP_PKEY *key = X509_get0_pubkey(cert);
	time_t now = time(NULL), hours = now - 2 * 3600;

	(void)state;
	assert_int_equal(X509_check_ca(cert), 1);
	assert_int_equal(X509_get_pathlen(cert), 0);
	assert_int_equal(X509_get_key_usage(cert), KU_KEY_CERT_SIGN | KU_CRL_SIGN);
	assert_int_equal(EVP_PKEY_get_bits(key), 256);
	assert_int_equal(X509_verify(cert, key), 1);
	assert_true(X509_cmp_time(X509_get0_notBefore(cert), &now) < 0);
	assert_true(X509_cmp_time(X509_get0_notBefore(cert), &hours) > 0);
	assert_in_range(days_left(cert), 29, 30);
	for (int i = X509_get_ext_count(cert); i-- > 0;) {
		X509_EXTENSION *ext = X509_get_ext(cert, i);
		int nid = OBJ_obj2nid(X509_EXTENSION_get_object(ext));

		if (nid == NID_basic_constraints || nid == NID_key_usage)
			assert_true(X509_EXTENSION_get_critical(ext));
	}
	X509_free(cert);
	json_decref(pems);
	ca_free(ca);
}

static void test_leaf(void **state)
{
	struct err err = {0};
	struct ca *ca = ca_new(&err), *other = ca_new(&err);
	json_t *pems = ca_json(ca), *other_pems = ca_json(other);
	X509 *root = from_pem(json_object_get(pems, "cert_pem"));
	X509 *other_root = from_pem(json_object_get(other_pems, "cert_pem"));
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *leaf = ca_sign(ca, "api.example.com", key);
	X509_STORE *store = X509_STORE_new(), *wrong = X509_STORE_new();
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();

	(void)state;
	assert_int_equal(X509_check_host(leaf, "api.example.com", 0, 0, NULL), 1);
	assert_int_equal(X509_check_host(leaf, "example.com", 0, 0, NULL), 0);
	assert_int_equal(X509_check_ca(leaf), 0);
	assert_int_equal(X509_get_extended_key_usage(leaf), XKU_SSL_SERVER);
	assert_in_range(days_left(leaf), 6, 7);
	X509_STORE_add_cert(store, root);
	X509_STORE_set_flags(store, X509_V_FLAG_X509_STRICT);
	X509_STORE_CTX_init(ctx, store, leaf, NULL);
	if (X509_verify_cert(ctx) != 1)
		fail_msg("%s", X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx)));
	X509_STORE_CTX_cleanup(ctx);
	X509_STORE_add_cert(wrong, other_root);
	X509_STORE_CTX_init(ctx, wrong, leaf, NULL);
	assert_int_not_equal(X509_verify_cert(ctx), 1);
	X509_STORE_CTX_free(ctx);
	X509_STORE_free(store);
	X509_STORE_free(wrong);
	X509_free(leaf);
	X509_free(root);
	X509_free(other_root);
	EVP_PKEY_free(key);
	json_decref(pems);
	json_decref(other_pems);
	ca_free(ca);
	ca_free(other);
}

static void test_long_host(void **state)
{
	char host[254];
	struct err err = {0};
	struct ca *ca = ca_new(&err);
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *leaf;

	(void)state;
	for (size_t i = 0; i < sizeof(host) - 1; i++)
		host[i] = i % 60 == 59 ? '.' : 'a';
	host[253] = '\0';
	leaf = ca_sign(ca, host, key);
	assert_non_null(leaf);
	assert_int_equal(X509_check_host(leaf, host, 0, 0, NULL), 1);
	X509_free(leaf);
	EVP_PKEY_free(key);
	ca_free(ca);
}

static void test_round_trip(void **state)
{
	struct err err = {0};
	struct ca *ca = ca_new(&err), *again = NULL;
	json_t *pems = ca_json(ca), *pems2;

	(void)state;
	assert_int_equal(ca_parse(&again, pems, &err), 0);
	assert_true(ca_same(ca, again));
	pems2 = ca_json(again);
	assert_true(json_equal(pems, pems2));
	json_decref(pems);
	json_decref(pems2);
	ca_free(ca);
	ca_free(again);
}

static void parse_refused(json_t *pems, const char *sentence)
{
	struct ca *ca = NULL;
	struct err err = {0};

	assert_true(ca_parse(&ca, pems, &err) < 0);
	assert_null(ca);
	if (!strstr(err.msg, sentence))
		fail_msg("%s", err.msg);
	json_decref(pems);
}

static void test_refused(void **state)
{
	struct err err = {0};
	struct ca *a = ca_new(&err), *b = ca_new(&err);
	json_t *pa = ca_json(a), *pb = ca_json(b);
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *leaf = ca_sign(a, "h.example.com", key);
	BIO *bio = BIO_new(BIO_s_mem()), *key_bio = BIO_new(BIO_s_mem());
	char *text, *key_text;

	(void)state;
	parse_refused(json_object(), "not a certificate and its key");
	parse_refused(json_pack("{s:s,s:s}", "cert_pem", "x", "key_pem", "y"), "not a certificate");
	parse_refused(json_pack("{s:O,s:O}", "cert_pem", json_object_get(pa, "cert_pem"), "key_pem",
				json_object_get(pb, "key_pem")),
		      "not a certificate and its key");
	PEM_write_bio_X509(bio, leaf);
	PEM_write_bio_PKCS8PrivateKey(key_bio, key, NULL, NULL, 0, NULL, NULL);
	BIO_write(bio, "", 1);
	BIO_write(key_bio, "", 1);
	BIO_get_mem_data(bio, &text);
	BIO_get_mem_data(key_bio, &key_text);
	parse_refused(json_pack("{s:s,s:s}", "cert_pem", text, "key_pem", key_text),
		      "not one that was made here");
	BIO_free(bio);
	BIO_free(key_bio);
	X509_free(leaf);
	EVP_PKEY_free(key);
	json_decref(pa);
	json_decref(pb);
	ca_free(a);
	ca_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ca),        cmocka_unit_test(test_leaf),
		cmocka_unit_test(test_long_host), cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
