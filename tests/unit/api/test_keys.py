import pytest

from tests.house import House, check_problem


def test_make_list_use_revoke(house: House) -> None:
    answer = house.ask("POST", "/v1/keys", json={"name": "laptop"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["key"].startswith(f"graft_{made['prefix']}.")
    listed = house.ask("GET", "/v1/keys").json()["items"]
    assert [key["name"] for key in listed] == ["first", "laptop"]
    assert all("key" not in key for key in listed)
    mine = house.as_of(made["key"])
    assert house.ask("GET", "/v1/workspace", headers=mine).json()["id"] == house.workspace_id
    assert house.ask("DELETE", f"/v1/keys/{made['id']}").status_code == 204
    check_problem(house.ask("GET", "/v1/workspace", headers=mine), 401, "unauthorized")
    check_problem(house.ask("DELETE", f"/v1/keys/{made['id']}"), 404, "key_not_found")


def test_the_last_key_stays(house: House) -> None:
    (only,) = house.ask("GET", "/v1/keys").json()["items"]
    check_problem(house.ask("DELETE", f"/v1/keys/{only['id']}"), 409, "last_key")
    assert house.ask("GET", "/v1/keys").status_code == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer x", "Bearer graft_aaaaaaaaaaaa." + "A" * 43,
     "Bearer graft_" + "a" * 5000, "Bearer \xff\xfe", "Token graft_x.y"],
)  # fmt: skip
def test_no_key_or_a_wrong_one(house: House, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = house.client.get("/v1/jobs", headers=headers)
    check_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_workspace_counts_what_it_holds(house: House) -> None:
    house.add_job("COMPLETE")
    body = house.ask("GET", "/v1/workspace").json()
    assert (body["name"], body["n_datasets"], body["n_jobs"], body["n_sources"]) == ("here", 1, 1, 0)
    sizes = [house.site.blobs.info(key).size_bytes for key in list(house.site.blobs.keys())]
    assert body["stored_bytes"] == sum(sizes)


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "a\r\nb"}, {"name": 3}, {"name": "x", "admin": True}, []])
def test_bodies_that_are_refused(house: House, body: object) -> None:
    check_problem(house.ask("POST", "/v1/keys", json=body), 422, "validation_error")
