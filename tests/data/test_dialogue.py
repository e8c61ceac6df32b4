"""Dialogues as text: format, renaming of ids, parsing of both kinds of file, split."""

import json

import pytest

from perl.data.text import dialogue

USER = {'role': 'user', 'text': ' An oat  latte, please'}
QUERY = {'role': 'agent', 'api': {'get_menu_items': {'query': 'Latte '}}}
FOUND = {'role': 'api', 'response': {
    'get_menu_items': {'items': [{'menu_item_id': 'latte-0002', 'name': 'Latte'}]}}}


def add(menu_item_id):
  return {'role': 'agent', 'api': {'add_order_item': {
      'menu_item_id': menu_item_id, 'quantity': '1',
      'attributes': [{'attribute_id': 'milk-options', 'option': 'Oat Milk'}]}}}


def test_render_format():
  prompt, response = dialogue.render([USER, QUERY, FOUND], add('latte-0002'))
  assert prompt == (
      '<|user|>An oat latte, please<|agent|>{"get_menu_items":{"query":"Latte"}}<|eos|>'
      '<|api|>{"items":{"latte-1":"Latte"}}<|agent|>')
  assert response == ('{"add_order_item":{"menu_item_id":"latte-1","quantity":"1",'
                      '"attributes":{"milk-options":"Oat Milk"}}}')


def test_document_is_prompt_response_and_end():
  turns = [USER, QUERY, FOUND]
  prompt, response = dialogue.render(turns, add('latte-0002'))
  document = dialogue.render_document(turns + [add('latte-0002')])
  assert document == prompt + response + '<|eos|>'


def test_no_response():
  assert dialogue.render([USER], None) == ('<|user|>An oat latte, please<|agent|>', '')
  assert dialogue.render([], None) == ('<|agent|>', '')


def test_a_made_up_id_differs_from_every_id_shown():
  _, response = dialogue.render([USER, QUERY, FOUND], add('latte-0099'))
  assert json.loads(response)['add_order_item']['menu_item_id'] == 'latte-2'


def test_ids_do_not_depend_on_their_digits():
  other = json.loads(json.dumps(FOUND).replace('latte-0002', 'latte-77'))
  assert (dialogue.render([USER, QUERY, FOUND], add('latte-0002'))
          == dialogue.render([USER, QUERY, other], add('latte-77')))


def test_random_order_ids():
  made = {'role': 'api', 'response': {'add_order_item': {
      'order_id': '8f810305869c418b986fe1daddfdfa53', 'order_item_id': '92049'}}}
  finish = {'role': 'agent', 'api': {'finish_order': {
      'order_id': '8f810305869c418b986fe1daddfdfa53'}}}
  prompt, response = dialogue.render([made], finish)
  assert prompt == '<|api|>{"order_id":"order-1","order_item_id":"item-1"}<|agent|>'
  assert response == '{"finish_order":{"order_id":"order-1"}}'


def test_a_bare_number_takes_its_name_from_the_item():
  found = {'role': 'api', 'response': {
      'get_menu_items': {'menu_items': [{'menu_item_id': '96675', 'name': 'Earl Grey'}]}}}
  assert '{"items":{"earl-grey-1":"Earl Grey"}}' in dialogue.render([found], None)[0]


def test_both_kinds_of_file_read_alike():
  ours = {'role': 'api', 'response': {'get_addons': {'addons': [
      {'addon_id': 'honey-016', 'name': 'Honey', 'options': ['NO', 'ADD']}]}}}
  theirs = {'role': 'api', 'response': {'get_addons': {'addons': [
      {'addon_id': 'honey-3', 'name': 'Honey ', 'default': 'NO', 'options': ['NO', 'ADD']}]}}}
  assert dialogue.render([ours], None) == dialogue.render([theirs], None)
  assert '{"addons":{"honey-1":["NO","ADD"]}}' in dialogue.render([ours], None)[0]


def test_what_an_agent_adds_to_an_entry_is_kept():
  call = {'role': 'agent', 'api': {'update_order': {'attributes': [
      {'attribute_id': 'order-type', 'attribute_name': 'Order Type', 'option': 'togo'}]}}}
  assert 'Order Type' in dialogue.render([], call)[1]


def test_a_marker_in_a_text_opens_no_turn():
  prompt, _ = dialogue.render([{'role': 'user', 'text': 'hi<|agent|>yes'}], None)
  assert prompt.count('<|agent|>') == 1


def test_parse_response():
  call = {'finish_order': {'order_id': 'order-1'}}
  assert dialogue.parse_response(json.dumps(call)) == {'role': 'agent', 'api': call}
  for text in ('Sure!', '{"finish_order":{', '[1]', '{"a":1}', ''):
    assert dialogue.parse_response(text) == {'role': 'agent', 'text': text}


def test_parse_response_inverts_render():
  for turn in (add('latte-1'), {'role': 'agent', 'text': 'Anything else?'}):
    _, response = dialogue.render([USER, QUERY, FOUND], turn)
    content = dialogue.parse_response(response)
    shown = content.get('text') or json.dumps(content['api'], separators=(',', ':'))
    assert shown == response


def test_split():
  assert dialogue.split_key([QUERY, USER, {'role': 'user', 'text': 'no'}]) == 'an oat latte, please'
  assert dialogue.split_key([QUERY]) == ''
  # Worked out with sha256sum and bc: the buckets are 49, 99, 65, 83 and 81.
  assert [dialogue.split_of(key) for key in ('', 'a', 'b', 'q', 's')] == [
      'train', 'test', 'train', 'dev', 'dev']
  shares = [dialogue.split_of(str(i)) for i in range(2000)]
  assert 0.77 < shares.count('train') / 2000 < 0.83


def test_reward_row():
  row = {'conversation_id': 'dlg-1', 'reward': 1.0, 'generation': json.dumps(QUERY),
         'context': json.dumps([{'role': 'agent', 'text': 'Welcome'}, USER])}
  assert dialogue.turns_of_reward_row(row) == ([USER], QUERY)
  assert dialogue.turns_of_reward_row(row | {'context': ''}) == ([], QUERY)
  with pytest.raises(ValueError, match='expected JSON in context of dlg-1, found'):
    dialogue.turns_of_reward_row(row | {'context': '[{'})
  with pytest.raises(ValueError, match='one turn were expected'):
    dialogue.turns_of_reward_row(row | {'generation': '[]'})


def test_dialog():
  notes = [('api_call', 'get_menu_items'), ('request', '{"query": "Latte "}'),
           ('api_response', 'get_menu_items'),
           ('response', '{"items":[{"menu_item_id":""latte-0002"","name":"Latte"}]}'),
           ('api_call', 'show_menu'), ('api_response', 'show_menu'),
           ('response', '{"success":true}')]
  dialog = {'conversation_id': 'dlg-2', 'utterances': [
      {'speaker': 'user', 'text': USER['text'],
       'annotations': [{'name': name, 'value': value} for name, value in notes]},
      {'speaker': 'assistant', 'text': 'Here you go', 'annotations': []}]}
  assert dialogue.turns_of_dialog(dialog) == [
      USER, QUERY, FOUND, {'role': 'agent', 'api': {'show_menu': {}}},
      {'role': 'api', 'response': {'show_menu': {'success': True}}},
      {'role': 'agent', 'text': 'Here you go'}]


def test_a_turn_of_no_kind():
  with pytest.raises(ValueError, match='found the keys'):
    dialogue.render([{'role': 'user'}], None)
  with pytest.raises(ValueError, match='role among'):
    dialogue.render([{'role': 'system', 'text': 'x'}], None)
